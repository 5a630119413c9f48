"""Seam 2 for SQLAlchemy: handlers with a transaction, inbox and outbox in the application's own SQLite or PostgreSQL.

What touches the database is written once, as plain functions of a sync SQLAlchemy `Connection`. An async session runs
them in the event loop through SQLAlchemy's own bridge, a sync session in a thread of its own (`lanes`).

    urls          plain database URLs, made usable and made printable
    dialects      what SQLite and PostgreSQL do differently
    tables        what they are called: prefix and schema
    store         the statements on inbox and outbox
    lanes         where SQLAlchemy's calls run
    transaction   one transaction, from its begin to the connection's return to the pool
    database      an engine or sessionmaker of the application, and the transactions on it
    unit          one transaction of a worker
    shared        one transaction for many messages
    inplace       quick statements of aiosqlite in the event loop's thread
    units         the seam: `SqlUnits`
    outbox        staging in a transaction that the application owns
    refused       what the broker does not take, for a person to retry or drop
    opening       a database by its URL, for the time of one command
    hooks         what is heard from SQLAlchemy: errors, and the end of a transaction
    trouble       which errors are the database's and not the message's
    migrations    the tables, by numbered SQL files
"""

from __future__ import annotations

from tidings.errors import MissingExtra

try:
    import sqlalchemy.ext.asyncio  # noqa: F401
except ImportError as error:
    raise MissingExtra("SQLAlchemy support", "sql") from error

from .migrations import Migration, Migrations, Status, upgrade
from .opening import oldest_unsent, opened
from .outbox import Outbox
from .refused import Refusals, Refused
from .tables import Tables
from .unit import SqlUnit
from .units import SqlUnits, units_for
from .urls import database_url, masked

__all__ = [
    "Migration",
    "Migrations",
    "Outbox",
    "Refusals",
    "Refused",
    "SqlUnit",
    "SqlUnits",
    "Status",
    "Tables",
    "database_url",
    "masked",
    "oldest_unsent",
    "opened",
    "units_for",
    "upgrade",
]
