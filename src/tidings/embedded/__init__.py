"""The broker inside: one nats-server per directory, started by its first user and gone with its last.

`start` joins or starts it and yields an address; this package is no engine and speaks to no stream.
"""

from __future__ import annotations

import typing

from ..permissions import User
from .answering import locate, silence
from .binary import Binary, find_binary
from .config import Address, BrokerSettings
from .locate import has_run, project_directory

if typing.TYPE_CHECKING:
    from .broker import Broker, start

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
    "silence",
    "start",
]

if not typing.TYPE_CHECKING:  # only who joins a broker pays for asyncio

    def __getattr__(name: str) -> object:
        if name not in ("Broker", "start"):
            raise AttributeError(f"module 'tidings.embedded' has no attribute {name!r}")
        from . import broker

        return getattr(broker, name)
