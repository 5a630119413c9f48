"""The broker inside: one nats-server per directory, started by its first user and gone with its last.

`start` joins or starts it and yields an address; this package is no engine and speaks to no stream.
"""

from __future__ import annotations

from ..permissions import User
from .binary import Binary, find_binary
from .broker import Broker, locate, start
from .config import Address, BrokerSettings
from .locate import has_run, project_directory

__all__ = [
    "Address",
    "Binary",
    "Broker",
    "BrokerSettings",
    "User",
    "find_binary",
    "has_run",
    "locate",
    "project_directory",
    "start",
]
