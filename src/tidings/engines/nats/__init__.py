"""The NATS engine. nats-py carries the core connection; everything above it is here.

Read in this order: `layout` (names and shapes), `publish`, `pull`, `settle`, `redrive`; below them `api` (JetStream's
API), `link` (a connection that comes back) and `connection` (the client library).
"""

from .connection import Address
from .engine import NatsEngine

__all__ = ["Address", "NatsEngine"]
