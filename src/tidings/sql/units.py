"""The seam for SQLAlchemy: `SqlUnits` is its `Units`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from tidings.clock import Clock
from tidings.engine import Outgoing
from tidings.errors import ConfigError, DatabaseBehind
from tidings.unit import Turn

from .database import Database, Source
from .dialects import SQLite
from .migrations import Migrations
from .outbox import Outbox
from .refused import Refusals
from .shared import SqlShared
from .store import Store
from .tables import Tables
from .trouble import is_conflict, is_transient
from .unit import SqlUnit

_PRUNE_BATCH: Final = 1000


class SqlUnits:
    """Units of work on one database of the application.

    From an `async_sessionmaker` or `AsyncEngine` for `async def` handlers that take an `AsyncSession` or
    `AsyncConnection`; from a `sessionmaker` or `Engine` for plain `def` handlers that take a `Session` or
    `Connection`, each of which runs in its transaction's own thread.

    On SQLite handlers' transactions take the write lock at their begin, and queue for it inside the process. The
    connections used are set to WAL, `synchronous=FULL` and a busy timeout of 5 seconds, unless they have more.
    """

    def __init__(
        self,
        sessions: Source,
        *,
        tables: Tables | None = None,
        clock: Clock | None = None,
        lease: float = 30.0,
    ) -> None:
        self._database = Database(sessions)
        self._store = Store(tables, clock, lease)

    @property
    def description(self) -> str:
        """The database's URL without password."""
        return self._database.description

    def accepts(self, annotation: object) -> bool:
        """Whether a handler parameter of this type gets this database's session or connection.

        Raises `ConfigError` for a session class of the application that the sessionmaker does not make.
        """
        if not isinstance(annotation, type):
            return False
        if issubclass(annotation, self._database.connection_type):
            return True
        made = self._database.session_type
        if not issubclass(annotation, AsyncSession if self._database.is_async else Session):
            return False
        if not issubclass(made, annotation):
            raise ConfigError(
                f"the handler asks for {annotation.__name__}, the sessionmaker makes {made.__name__}: "
                f"give it class_={annotation.__name__}, or annotate the parameter with {made.__name__}"
            )
        return True

    @asynccontextmanager
    async def begin(self, annotation: object, name: str = "") -> AsyncIterator[SqlUnit]:
        """A new transaction for a handler with that annotation; see `Units.begin`.

        Raises `DatabaseError` when there is none to be had. Cancelled, it still gives the connection back.
        """
        assert isinstance(annotation, type), "the plan of a handler names an annotation that was accepted"
        async with self._database.begin(name, for_handler=True) as transaction:
            yield SqlUnit(transaction, self._store, await transaction.hand_out(annotation))

    def shares(self, annotation: object) -> bool:
        """Whether handlers with that annotation can share a transaction: not if their sessions choose among several
        databases."""
        return self._database.one_for_all

    @asynccontextmanager
    async def share(self, annotation: object, name: str = "") -> AsyncIterator[SqlShared]:
        """A transaction for many messages; see `Units.share`. Raises as `begin` does."""
        assert isinstance(annotation, type), "the plan of a handler names an annotation that was accepted"
        async with self._database.begin(name, for_handler=True) as transaction:
            shared = SqlShared(transaction, self._store, self._database.session, annotation)
            await shared.open()
            yield shared

    def transient(self, error: BaseException) -> bool:
        """Whether the database was away, busy, full or read-only: no message is to blame for that."""
        return is_transient(error)

    def conflict(self, error: BaseException) -> bool:
        """Whether another transaction won, or the connection was lost in the middle; see `Units.conflict`."""
        return is_conflict(error)

    async def prepare(self) -> None:
        """Check the database and the tables; on SQLite make them.

        Raises `ConfigError` for a database in memory, `DatabaseBehind` for missing or old tables, `DatabaseError`
        when the database cannot be used.
        """
        if isinstance(self._database.dialect, SQLite):
            self._refuse_memory()
        status = await self.migrations.status()
        if not status.pending:
            return
        if isinstance(self._database.dialect, SQLite):
            await self.migrations.upgrade()
        else:
            raise DatabaseBehind(
                f"{self.description} lacks the tables of Tidings ({', '.join(status.pending)}). Run: tidings db upgrade"
            )

    @property
    def migrations(self) -> Migrations:
        """The state of this database's tables."""
        return Migrations(self._database, tables=self._store.tables)

    @property
    def refusals(self) -> Refusals:
        """What the engine did not take, for a person to look at."""
        return Refusals(self._database, self._store.tables)

    async def unsent(self, limit: int) -> list[Outgoing]:
        """Lease staged messages whose lease has ended; see `Units.unsent`."""
        return await self._database.run(self._store.lease, limit)

    async def mark_sent(self, messages: Sequence[Outgoing]) -> None:
        """Take them out of the outbox, unless another process has taken them over and does it."""
        if messages:
            await self._database.run(self._store.mark_sent, messages)

    async def mark_refused(self, message: Outgoing, why: str) -> None:
        """Leave it in the outbox with what the engine said; see `Units.mark_refused`."""
        await self._database.run(self._store.mark_refused, message, why)

    def outbox(self, session: Any) -> Outbox:
        """The outbox in a transaction that the application owns."""
        return Outbox(session, self._store)

    async def enter(self, name: str, epoch: int) -> int:
        """Begin an epoch, unless there is a later one; returns the latest. See `Units.enter`."""
        return await self._database.run(self._store.enter, name, epoch)

    async def committed(self, messages: Sequence[Outgoing]) -> Turn:
        """Those of the messages staged here whose transaction has really committed, and that this process is to send.
        What a savepoint or an outer transaction took back is not among them."""
        return await self._database.look(self._store.staged, messages) if messages else Turn([], [])

    async def oldest_unsent(self) -> float | None:
        """Age in seconds of the oldest message that waits in the outbox; see `Units.oldest_unsent`."""
        return await self._database.look(self._store.oldest_unsent)

    async def prune_inbox(self, older_than: float) -> int:
        """Forget messages handled more than `older_than` seconds ago, a thousand per transaction; returns how many.

        A message that comes back after that is handled again: keep them longer than any redelivery can take.
        """
        total = 0
        while pruned := await self._database.run(self._store.prune, older_than, _PRUNE_BATCH):
            total += pruned
        return total

    async def close(self) -> None:
        """Let go of the threads of sync sessions; the engine stays the application's. Idempotent."""
        self._database.close()

    def _refuse_memory(self) -> None:
        engine = self._database.engine
        name = engine.url.database or ":memory:"
        if (
            ":memory:" in name
            or engine.url.query.get("mode") == "memory"
            or isinstance(engine.pool, StaticPool | SingletonThreadPool)
        ):
            raise ConfigError(
                f"{self.description}: a database in memory, or one connection for all sessions, cannot keep the "
                "transactions of handlers apart; use a file (sqlite+aiosqlite:///todo.db)"
            )


def units_for(sessions: Source, tables: Tables | None = None, *, lease: float = 30.0) -> SqlUnits:
    """Units of work for what an application gives a bus."""
    return SqlUnits(sessions, tables=tables, lease=lease)
