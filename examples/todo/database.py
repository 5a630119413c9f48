"""The list in its database: SQLite in the data directory, or whatever `TIDINGS_DATABASE_URL` names."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, String, TypeDecorator, func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

import tidings.settings
from tidings.embedded import project_directory
from tidings.sql import database_url

from .events import LONGEST


def default_url() -> str:
    data = Path(os.environ.get("TIDINGS_DATA") or project_directory()).absolute()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    return f"sqlite:///{data / 'todo.sqlite3'}"


engine = create_async_engine(database_url(tidings.settings.load().database_url or default_url()))
async_session = async_sessionmaker(engine, expire_on_commit=False)


class UTCDateTime(TypeDecorator[datetime]):
    """SQLite has no time zones: what it returns is in UTC, because that is what went in."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "todo_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(LONGEST))
    date_added: Mapped[datetime] = mapped_column(UTCDateTime)


async def create_tables() -> None:
    """Make the table if it is not there yet. Many processes may do so at once."""
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # where IF NOT EXISTS does not wait for others who just create it
            await connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(Item.__tablename__))))
        await connection.execute(CreateTable(Base.metadata.tables[Item.__tablename__], if_not_exists=True))
