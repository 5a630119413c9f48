"""One transaction, from its begin to the connection's return to the pool, whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session, SessionTransaction

from tidings.errors import ConfigError, DatabaseError, TidingsError

from . import hooks
from .dialects import Dialect
from .lanes import Lane, finish

log = logging.getLogger("tidings.sql")

T = TypeVar("T")
P = ParamSpec("P")

_GRACE: Final = 5.0  # seconds for a commit or a rollback to end after a cancel, before the connection is thrown away
_STILL_USABLE: Final = text("SELECT 1")
_GUARDED: Final = ("commit", "rollback", "close", "reset", "begin")


class Transaction:
    """A transaction of ours on a connection of the application's engine.

    `end` must be called in every case; it rolls back what is not committed. If the database does not answer in time
    the connection is thrown away, which rolls back as well, so that the pool never loses a place.
    """

    def __init__(
        self, lane: Lane, dialect: Dialect, description: str, name: str = "", *, reads_only: bool = False
    ) -> None:
        self._lane = lane
        self._dialect = dialect
        self._description = description
        self._name = f"tidings {name}".rstrip()
        self._reads_only = reads_only
        self._open = False
        self._begun: SessionTransaction | None = None
        self._guarded: list[Session | Connection] = []

    async def open(self) -> None:
        """Connect and begin. Raises `DatabaseError` whatever the reason: no message has been touched yet."""
        await self._lane.open()
        self._open = True
        try:
            await self._lane.call(self._begin)
        except TidingsError:
            raise
        except Exception as error:
            reason = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
            raise DatabaseError(
                f"no transaction on {self._description}: {reason}. Is the database running, reachable from here and "
                "not overloaded, and are its address and password right?"
            ) from error

    async def call(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a plain function with the connection of this transaction."""

        def with_connection(session: Session) -> T:
            return function(session.connection(), *args, **kwargs)

        return await self._lane.call(with_connection)

    async def with_session(
        self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a plain function with the session of this transaction."""
        return await self._lane.call(function, *args, **kwargs)

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the application where it may use what `hand_out` returned."""
        return await self._lane.run(function, *args)

    async def hand_out(self, annotation: type) -> Any:
        """The session or connection for a handler; it refuses to end the transaction."""
        await self._lane.call(self._guard)
        return await self._lane.for_handler(annotation)

    async def commit(self) -> None:
        """Commit and give the connection back. A cancel waits up to `_GRACE` seconds for the outcome and is raised
        then; either way the database decides, and the inbox tells at the next delivery."""
        await finish(self._lane.call(self._commit), _GRACE)

    async def rollback(self) -> None:
        """Undo what is not committed and give the connection back; idempotent, raises nothing but a cancel."""
        if self._open:
            await finish(self._close())

    async def end(self) -> None:
        """Roll back if it has not ended yet, and give up the place where the calls run. Once."""
        try:
            await self.rollback()
        finally:
            self._lane.release()

    def _begin(self, session: Session) -> None:
        if not session.in_transaction():
            session.begin()
        connection = session.connection()
        hooks.watch(connection.engine)
        if self._reads_only and self._dialect.one_writer:
            return
        self._dialect.begin(connection, self._name)
        hooks.begun(connection)
        self._begun = session.get_transaction()
        if not self._dialect.in_transaction(connection.connection.driver_connection):
            raise ConfigError(
                f"{self._description}: the engine commits each statement by itself (isolation level AUTOCOMMIT); "
                "give Tidings sessions of an engine with transactions"
            )

    def _commit(self, session: Session) -> None:
        self._unguard()
        session.flush()
        self._check_whole(session)
        session.commit()
        session.close()
        self._open = False

    def _check_whole(self, session: Session) -> None:
        """Two ways in which COMMIT succeeds without committing everything: somebody has ended the transaction before,
        or PostgreSQL has given it up after an error that the handler swallowed."""
        connection = session.connection()
        driver = connection.connection.driver_connection
        if session.get_transaction() is not self._begun or not self._dialect.in_transaction(driver):
            raise ConfigError(
                "the transaction was ended inside the handler (a COMMIT or ROLLBACK as SQL, or the database rolled "
                "back after an error that the handler swallowed): what it wrote before may be committed without its "
                "inbox mark. Leave the transaction to the worker, and use begin_nested() around what may fail"
            )
        if hooks.has_failed(connection):
            connection.execute(_STILL_USABLE)

    async def _close(self) -> None:
        if not await self._within_grace(Session.close, "the rollback failed, its connection is thrown away"):
            await self._within_grace(Session.invalidate, "its connection does not even close")
        self._open = False

    async def _within_grace(self, ending: Callable[[Session], None], otherwise: str) -> bool:
        def unguarded(session: Session) -> None:
            # Here, and not before the call: a cancelled `_guard` may still be at work in the session's thread.
            self._unguard()
            ending(session)

        try:
            async with asyncio.timeout(_GRACE):
                await self._lane.call(unguarded)
        except Exception as error:
            log.warning("%s: %s: %s", self._description, otherwise, str(error) or "no answer")
            return False
        return True

    def _guard(self, session: Session) -> None:
        """Shadow the methods on these two instances: the session's class may be the application's own, and the async
        session and connection call the sync ones."""
        self._guarded = [session, session.connection()]
        for target in self._guarded:
            guard(target)

    def _unguard(self) -> None:
        for target in self._guarded:
            for name in _GUARDED:
                vars(target).pop(name, None)


def guard(target: Session | Connection) -> None:
    """Make this instance refuse to end the transaction."""
    vars(target).update({name: _refusal(target, name) for name in _GUARDED if hasattr(target, name)})


def _refusal(guarded: Session | Connection, name: str) -> Callable[..., Any]:
    # Else it would hold itself, and all that it holds would wait for the garbage collector.
    of = weakref.ref(guarded)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        target = of()
        if name == "begin" and isinstance(target, Session) and (kwargs.get("nested") or args[:1] == (True,)):
            return type(target).begin(target, nested=True)
        raise ConfigError(
            f"{name}() on the connection of a handler would tear its writes from the inbox mark and the follow-ups: "
            "the worker commits when the handler returns and rolls back when it raises. Use begin_nested() for a part "
            "that may fail, flush() for generated ids, and a session of your own for what must be kept in any case"
        )

    return refuse
