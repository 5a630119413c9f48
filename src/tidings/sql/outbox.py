"""Staging messages in a transaction that the application owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from tidings.engine import Outgoing
from tidings.errors import ConfigError

from . import hooks
from .store import Store

Owner: TypeAlias = (
    AsyncSession | AsyncConnection | Session | Connection | async_scoped_session[Any] | scoped_session[Any]
)


class Outbox:
    """The outbox inside somebody's open transaction: what is staged leaves after their commit, or not at all.

    The rows are left to this process for a third of the lease; `after_commit` is its chance to send them at once.
    If it does not, or the transaction takes longer, any relay finds them.
    """

    def __init__(self, session: Owner, store: Store | None = None) -> None:
        self._session = session() if isinstance(session, async_scoped_session | scoped_session) else session
        self._store = store or Store()

    async def stage(self, messages: Sequence[Outgoing], after_commit: Callable[[], object] | None = None) -> None:
        """Insert the messages through an async session or connection, within its transaction.

        `after_commit` is called when the transaction has ended, not after a rollback; it must not block. It is a hint:
        ask `SqlUnits.committed` what is really there.
        """
        if not isinstance(self._session, AsyncSession | AsyncConnection):
            raise ConfigError(f"{_name(self._session)} is not async: publish with bus.outbox(session).publish_sync(…)")
        await self._session.run_sync(self._stage, messages, after_commit)

    def stage_sync(self, messages: Sequence[Outgoing], after_commit: Callable[[], object] | None = None) -> None:
        """`stage` for a sync session or connection; `after_commit` is called in the thread that commits."""
        if not isinstance(self._session, Session | Connection):
            raise ConfigError(f"{_name(self._session)} is async: publish with await bus.outbox(session).publish(…)")
        self._stage(self._session, messages, after_commit)

    def _stage(self, owner: Any, messages: Sequence[Outgoing], after_commit: Callable[[], object] | None) -> None:
        connection = owner if isinstance(owner, Connection) else owner.connection()
        self._store.stage(connection, messages)
        if after_commit is not None:
            hooks.watch(connection.engine)
            hooks.after_commit(connection, after_commit)


def _name(value: object) -> str:
    return type(value).__name__
