"""A database for the time of one command, by its URL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from tidings.errors import ConfigError, MissingExtra

from .database import Database
from .store import Store
from .tables import Tables
from .urls import database_url, masked


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """Connections are made as they are needed, and none outlives its use. Raises `ConfigError`, `MissingExtra`."""
    engine = _engine(database_url(url))
    database = Database(engine)
    try:
        yield database
    finally:
        database.close()
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()


async def oldest_unsent(database: Database, tables: Tables) -> float | None:
    """Age in seconds of the event that has waited in the outbox for longest, None when none waits."""
    return await database.look(Store(tables).oldest_unsent)


def _engine(url: str) -> AsyncEngine | Engine:
    try:
        if url.startswith("sqlite"):
            # A thread of aiosqlite that could not open its file may outlive the loop of a short command.
            return create_engine(make_url(url).set(drivername="sqlite"), poolclass=NullPool)
        return create_async_engine(url, poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the driver of {masked(url)} ({error.name})", "postgres") from error
    except SQLAlchemyError as error:
        raise ConfigError(f"{masked(url)} is no URL for an async engine: {masked(error)}") from error
