"""One transaction of a worker: `SqlUnit` is the seam's `Unit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tidings import failpoints
from tidings.engine import Outgoing
from tidings.unit import Deposed, InboxKey

from .store import Store
from .transaction import Transaction


class SqlUnit:
    """One transaction of a worker. Cancelling any call is safe: the transaction is rolled back on leaving it."""

    def __init__(self, transaction: Transaction, store: Store, connection: Any) -> None:
        self._transaction = transaction
        self._store = store
        self.connection = connection

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function where `connection` may be used: a sync session's in its own thread, an async one's here,
        awaiting what it returns. A thread cannot be stopped: cancelling waits for the function's end."""
        return await self._transaction.run(function, *args)

    async def fresh(self, keys: Sequence[InboxKey]) -> set[InboxKey]:
        """Mark the messages as handled and return those that were not; see `Unit.fresh`."""
        new = await self._transaction.call(self._store.fresh, keys)
        failpoints.here("inbox.marked")
        return new

    async def forget(self, keys: Sequence[InboxKey]) -> None:
        """Take back marks that this unit made."""
        if keys:
            await self._transaction.call(self._store.forget, keys)

    async def stage(self, messages: Sequence[Outgoing]) -> None:
        """Put follow-ups into the outbox. For a third of the lease they are left to this process to send."""
        if messages:
            await self._transaction.call(self._store.stage, messages)

    async def fence(self, name: str, epoch: int) -> None:
        """Raise `Deposed` unless the epoch is still the latest; see `Unit.fence`."""
        latest = await self._transaction.call(self._store.epoch, name)
        if latest != epoch:
            raise Deposed(f"{name} is in epoch {latest}, this transaction began in {epoch}: nothing of it is committed")

    async def commit(self) -> None:
        """Flush and commit. Raises `ConfigError` when the handler has ended the transaction behind our back."""
        failpoints.here("commit.begun")
        await self._transaction.commit()
        failpoints.here("commit.ended")

    async def rollback(self) -> None:
        """Undo everything and give the connection back; idempotent, also on a broken connection."""
        await self._transaction.rollback()
