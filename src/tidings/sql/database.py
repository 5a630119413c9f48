"""A database of the application: where its sessions come from, and our transactions on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from tidings.errors import ConfigError
from tidings.threads import Threads

from .dialects import Dialect, dialect_of
from .lanes import Lane, LoopLane, ThreadLane
from .transaction import Transaction
from .urls import masked

T = TypeVar("T")
P = ParamSpec("P")

Source: TypeAlias = async_sessionmaker[Any] | AsyncEngine | sessionmaker[Any] | Engine


class Database:
    """An engine of the application, sync or async. The engine is looked up at first use: applications like to bind
    their sessionmaker late."""

    def __init__(self, source: Source) -> None:
        if isinstance(source, AsyncEngine):
            source = async_sessionmaker(source, expire_on_commit=False)
        elif isinstance(source, Engine):
            source = sessionmaker(source, expire_on_commit=False)
        elif not isinstance(source, async_sessionmaker | sessionmaker):
            raise ConfigError(
                f"{source!r} makes no database sessions: give an async_sessionmaker or an AsyncEngine for async "
                "handlers, a sessionmaker or an Engine for plain def handlers"
            )
        self._sessions: async_sessionmaker[Any] | sessionmaker[Any] = source
        self._engine: Engine | None = None
        self._threads = Threads()
        self._turn = asyncio.Lock()

    @property
    def is_async(self) -> bool:
        return isinstance(self._sessions, async_sessionmaker)

    @property
    def session_type(self) -> type:
        """The class of the sessions that handlers get."""
        made: type = self._sessions.class_
        return made

    @property
    def connection_type(self) -> type:
        return AsyncConnection if self.is_async else Connection

    @property
    def engine(self) -> Engine:
        """The sync engine (of an async one: the one inside). Raises `ConfigError` for sessions without an engine."""
        if self._engine is None:
            session: Session = self._sessions().sync_session if self.is_async else self._sessions()
            try:
                bind = session.get_bind()
            except UnboundExecutionError:
                raise ConfigError(
                    "the sessionmaker has no engine yet: bind it, sessionmaker(engine), before the bus is used"
                ) from None
            if not isinstance(bind, Engine):
                raise ConfigError(
                    "the sessionmaker is bound to one connection: bind it to the engine, as workers need many"
                )
            self._engine = bind
        return self._engine

    @property
    def one_for_all(self) -> bool:
        """Whether every session uses one engine for whatever it is asked."""
        session: Session = self._sessions().sync_session if self.is_async else self._sessions()
        binds: object = vars(session).get("_Session__binds")
        return not binds and type(session).get_bind is Session.get_bind

    def session(self) -> AsyncSession | Session:
        """A session of the application that is not used yet."""
        made: AsyncSession | Session = self._sessions()
        return made

    @property
    def dialect(self) -> Dialect:
        return dialect_of(self.engine.dialect.name)

    @property
    def description(self) -> str:
        """The URL without password."""
        return masked(self.engine.url)

    @asynccontextmanager
    async def begin(self, name: str = "", *, for_handler: bool = False) -> AsyncIterator[Transaction]:
        """A transaction, rolled back on leaving unless it was committed. `for_handler` takes the application's own
        session class; ours are plain, so that its session events hear nothing of inbox and outbox. `name` is whose
        it is, for `Dialect.begin`."""
        async with self._turn_to_write():
            transaction = Transaction(self._lane(for_handler), self.dialect, self.description, name)
            try:
                await transaction.open()
                yield transaction
            finally:
                await transaction.end()

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a plain function of a connection in a transaction of its own."""
        async with self.begin() as transaction:
            result = await transaction.call(function, *args, **kwargs)
            await transaction.commit()
            return result

    async def look(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`run` for a function that only reads: on SQLite it waits for no writer."""
        transaction = Transaction(self._lane(False), self.dialect, self.description, reads_only=True)
        try:
            await transaction.open()
            return await transaction.call(function, *args, **kwargs)
        finally:
            await transaction.end()

    def close(self) -> None:
        """Let go of the threads; the engine is the application's."""
        self._threads.close()

    def _lane(self, for_handler: bool) -> Lane:
        engine = self.engine
        # For good: a task that a handler leaves behind must not begin a transaction that nobody ends.
        make = partial(self._sessions, close_resets_only=False)
        if isinstance(self._sessions, async_sessionmaker):
            return LoopLane(make if for_handler else lambda: AsyncSession(AsyncEngine(engine)))
        return ThreadLane(make if for_handler else lambda: Session(engine), self._threads)

    def _turn_to_write(self) -> AbstractAsyncContextManager[None]:
        """SQLite has one writer at a time and lets the others poll for 5 seconds; in this process they queue instead,
        first come, first served, without a connection and without a time limit."""
        return self._turn if self.dialect.one_writer else nullcontext()
