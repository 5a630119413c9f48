"""The framework's tables, by numbered SQL files: `migrations/<dialect>/0001_<name>.sql`.

A file is a list of statements, each ended by a semicolon at the end of a line; `{prefix}` and `{schema}` are filled
in. Files are never changed once released: a change is a new number.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib import resources
from typing import Final

import msgspec
from sqlalchemy import Connection, inspect, text

from tidings.errors import ConfigError
from tidings.sql.database import Database, Source
from tidings.sql.dialects import dialect_of
from tidings.sql.opening import opened
from tidings.sql.tables import Tables
from tidings.sql.urls import database_url

_RECORD: Final = "INSERT INTO {table}migrations (version, name, applied_at) VALUES ({version}, '{name}', {now})"
_NOW: Final = {
    "sqlite": "CAST(strftime('%s', 'now') AS REAL)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}


class Migration(msgspec.Struct, frozen=True):
    """One numbered SQL file."""

    version: int
    name: str
    """As in the file's name, number included: `0001_inbox_outbox`."""
    text: str


class Status(msgspec.Struct, frozen=True):
    """Names of migrations. What a newer version of Tidings has applied counts as applied."""

    applied: tuple[str, ...]
    pending: tuple[str, ...]


class Migrations:
    """The tables of one database: what is there, what is missing, and how to get it."""

    def __init__(self, database: Database | Source | str, *, tables: Tables | None = None) -> None:
        self._url = database_url(database) if isinstance(database, str) else None
        self._given = None if isinstance(database, str) else _database(database)
        self._tables = tables or Tables()

    async def status(self) -> Status:
        """What is applied and what is pending. Raises `DatabaseError` when the database does not answer."""
        async with self._database() as database:
            return await database.look(self._status)

    async def upgrade(self) -> list[str]:
        """Apply what is pending, all or nothing; returns the names. Safe from many processes at once: one does it,
        the others wait and find nothing to do."""
        async with self._database() as database:
            return await database.run(self.apply)

    def sql(self, dialect: str | None = None) -> str:
        """The whole text, for who applies it by hand: in one transaction, with its own record of what was applied."""
        name = dialect or self._dialect()
        parts = []
        for migration in _migrations(name):
            statements = "".join(f"{statement};\n\n" for statement in self._statements(name, migration))
            parts.append(f"-- {migration.name}\nBEGIN;\n\n{statements}COMMIT;\n")
        return "\n".join(parts)

    def _dialect(self) -> str:
        if self._url is not None:
            return self._url.partition("+")[0]
        assert self._given is not None
        return self._given.engine.dialect.name

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[Database]:
        if self._given is not None:
            yield self._given
            return
        assert self._url is not None
        async with opened(self._url) as database:
            yield database

    def _status(self, connection: Connection) -> Status:
        applied = self._applied(connection)
        pending = [m.name for m in _migrations(connection.dialect.name) if m.version not in applied]
        return Status(tuple(applied[version] for version in sorted(applied)), tuple(pending))

    def _applied(self, connection: Connection) -> dict[int, str]:
        if not inspect(connection).has_table(f"{self._tables.prefix}migrations", schema=self._tables.schema):
            return {}
        rows = connection.execute(text(f"SELECT version, name FROM {self._tables.before}migrations"))  # noqa: S608
        return {row.version: row.name for row in rows}

    def apply(self, connection: Connection, to: int | None = None) -> list[str]:
        """`upgrade` inside an open transaction, up to number `to`."""
        self._alone(connection)
        self._make_schema(connection)
        name = connection.dialect.name
        applied = self._applied(connection)
        wanted = [migration for migration in _migrations(name) if to is None or migration.version <= to]
        pending = [migration for migration in wanted if migration.version not in applied]
        for migration in pending:
            for statement in self._statements(name, migration):
                connection.exec_driver_sql(statement)
        return [migration.name for migration in pending]

    def _alone(self, connection: Connection) -> None:
        """Wait for other upgrades, and keep them waiting until the commit. On SQLite the transaction itself does."""
        if connection.dialect.name != "postgresql":
            return
        key = zlib.crc32(f"tidings migrations {self._tables.before}".encode())
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})

    def _make_schema(self, connection: Connection) -> None:
        """Asked for only where it is missing: the right to make schemas is one that applications often lack."""
        if (schema := self._tables.schema) and not inspect(connection).has_schema(schema):
            connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')

    def _statements(self, dialect: str, migration: Migration) -> list[str]:
        schema = f'"{self._tables.schema}".' if self._tables.schema else ""
        filled = migration.text.replace("{schema}", schema).replace("{prefix}", self._tables.prefix)
        statements = [part.strip() for part in filled.split(";\n")]
        record = _RECORD.format(
            table=self._tables.before, version=migration.version, name=migration.name, now=_NOW[dialect]
        )
        return [*(statement for statement in statements if statement), record]


def upgrade(connection: Connection, *, tables: Tables | None = None, to: int | None = None) -> list[str]:
    """Apply what is pending, up to number `to`, in the transaction of this connection; returns the names.

    For migrations of the application's own, as those of Alembic: `upgrade(op.get_bind(), to=3)`. The caller commits.
    Raises `ConfigError` for a number that this version does not have.
    """
    known = [migration.version for migration in _migrations(connection.dialect.name)]
    if to is not None and to not in known:
        raise ConfigError(f"to={to}: this version of Tidings has the migrations {known[0]} to {known[-1]}")
    return Migrations(connection.engine, tables=tables).apply(connection, to)


def _database(given: Database | Source) -> Database:
    return given if isinstance(given, Database) else Database(given)


@cache
def _migrations(dialect: str) -> tuple[Migration, ...]:
    folder = resources.files(__name__) / dialect_of(dialect).name
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return tuple(
        Migration(int(file.name.partition("_")[0]), file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in files
    )
