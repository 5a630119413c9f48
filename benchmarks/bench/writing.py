"""What every contender's handler does with a database: the same table, the same SQLAlchemy, the same settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import event, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .job import Job

Emit = Callable[[int, str], Awaitable[object]]
"""Publish that a row was saved, under its id."""


class Sent(Protocol):
    """A contender's own class for the message."""

    @property
    def number(self) -> int: ...
    @property
    def sent(self) -> float: ...
    @property
    def text(self) -> str: ...


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "bench_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    text: Mapped[str]


def sessions(job: Job) -> async_sessionmaker[AsyncSession]:
    """Sessions of the job's database, whose table is there."""
    engine = create_async_engine(job.database)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_up)
    return async_sessionmaker(engine, expire_on_commit=False)


async def prepare(made: async_sessionmaker[AsyncSession]) -> None:
    engine = made.kw["bind"]
    assert isinstance(engine, AsyncEngine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


def _set_up(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def row(message: Sent) -> Row:
    return Row(number=message.number, text=message.text)


class Once:
    """Tells of each message once, however often its handler runs again because of others."""

    def __init__(self, seen: Callable[[float], None]) -> None:
        self._seen = seen
        self._known: set[int] = set()

    def __call__(self, position: int, sent: float) -> None:
        if position not in self._known:
            self._known.add(position)
            self._seen(sent)


def is_poison(message: Sent, job: Job) -> bool:
    return message.number % job.poisoned == 50


async def saved(job: Job, count: int) -> None:
    """Wait until so many rows are committed."""
    made = sessions(job)
    try:
        while True:
            async with made() as session:
                if (await session.execute(select(func.count()).select_from(Row))).scalar_one() >= count:
                    return
            await asyncio.sleep(0.005)
    finally:
        await made.kw["bind"].dispose()


def refused_row() -> Row:
    """One that the database does not take: it lacks what it must have."""
    return Row(number=None, text=None)


async def write_many(session: AsyncSession, messages: Sequence[Sent]) -> None:
    """One multi-row statement."""
    values = [{"number": message.number, "text": message.text} for message in messages]
    await session.execute(insert(Row), values)


class Writer:
    """The handler of a framework that leaves the transaction to the handler."""

    def __init__(self, job: Job, seen: Callable[[float], None], emit: Emit) -> None:
        self._sessions = sessions(job)
        self._saves = job.writes == "save"
        self._seen = seen
        self._emit = emit
        # SQLite has one writer at a time: to queue for it here is quicker than to poll for its lock.
        self._turn = asyncio.Semaphore(1 if job.database.startswith("sqlite") else 1000)

    async def prepare(self) -> None:
        await prepare(self._sessions)

    async def one(self, message: Sent) -> None:
        async with self._turn, self._sessions() as session:
            saved = row(message)
            session.add(saved)
            if self._saves:
                await session.flush()
            await session.commit()
        if self._saves:
            await self._emit(saved.id, saved.text)
        self._seen(message.sent)

    async def many(self, messages: Sequence[Sent]) -> None:
        async with self._sessions() as session:
            await write_many(session, messages)
            await session.commit()
        for message in messages:
            self._seen(message.sent)
