"""Quick statements of aiosqlite where they are: in the event loop's thread.

aiosqlite runs every call in a thread of its connection and pays two changes of thread for each, several per statement;
a statement inside SQLite's open write transaction costs less than one of them. So while a transaction of ours is open,
statements that are known to be quick are run in place, and what asks the database nothing (a new cursor, the pool's
rollback after a commit). What may wait (BEGIN for the write lock, COMMIT for the disk) or is not known yet goes the
usual way. A statement that has held up the event loop goes it too, for a hundred calls, and for twice as many after
each further time: once it may have been the garbage collector, or a busy machine.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

_NAME: Final = "tidings-in-place"
_QUICK: Final = 0.002  # seconds, with the way to the thread and back: from the next time on in place
_SLOW: Final = 0.02  # seconds: not in place for a while
_WHILE: Final = 100  # quick calls in the thread, after the first time it was slow
_KNOWN: Final = 500  # statements whose time is remembered, per connection
_WORDS: Final = ("INSERT", "SELECT", "UPDATE", "DELETE", "WITH", "SAVEPOINT", "RELEASE", "ROLLBACK TO")


class InPlace:
    """Stands before one aiosqlite connection's `_execute`, through which all its calls go."""

    def __init__(self, connection: Any) -> None:
        self._queued: Callable[..., Any] = connection._execute
        self._last = ""
        self._known: dict[str, _Statement] = {}
        self.on = False
        connection._execute = self

    async def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.on:
            return await self._queued(function, *args, **kwargs)
        name = getattr(function, "__name__", "")
        of = getattr(function, "__self__", None)
        if name in ("execute", "executemany"):
            self._last = args[0]
        elif _waits_for_nothing(name, of):
            return function(*args, **kwargs)
        elif not isinstance(of, sqlite3.Cursor):
            return await self._in_thread(function, *args, **kwargs)
        begun = time.perf_counter()
        try:
            if (known := self._known.get(self._last)) is not None and known.missing == 0:
                return function(*args, **kwargs)
            return await self._in_thread(function, *args, **kwargs)
        finally:
            self._took(time.perf_counter() - begun)

    async def _in_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._queued(function, *args, **kwargs)
        except asyncio.CancelledError:
            self.on = False  # it is still at work in its thread: what follows queues behind it
            raise

    def _took(self, seconds: float) -> None:
        known = self._known.get(self._last)
        if known is None:
            if not self._last.lstrip().upper().startswith(_WORDS):
                return
            if len(self._known) >= _KNOWN:
                self._known.clear()
            known = self._known[self._last] = _Statement()
        known.took(seconds)


class _Statement:
    """How long one statement takes."""

    __slots__ = ("_after_slow", "missing")

    def __init__(self) -> None:
        self.missing = 1
        """Quick calls until it is run in place."""
        self._after_slow = _WHILE

    def took(self, seconds: float) -> None:
        if seconds > _SLOW:
            in_place, self.missing = self.missing == 0, self._after_slow
            self._after_slow *= 2 if in_place else 1
        elif seconds < _QUICK and self.missing:
            self.missing -= 1


def _waits_for_nothing(name: str, of: Any) -> bool:
    """Whether it only looks at what Python keeps, as the pool's rollback after a commit. A cursor closed in the thread
    would also look as if the handler waited for something of its own: SQLAlchemy closes it behind the end of its
    statement."""
    if isinstance(of, sqlite3.Cursor):
        return name == "close"
    return isinstance(of, sqlite3.Connection) and (name == "cursor" or (name == "rollback" and not of.in_transaction))


def switch_on(driver: Any, info: dict[str, Any]) -> None:
    """From now on, until `switch_off`. `info` is what the pool keeps with the connection; does nothing for drivers
    other than aiosqlite, and for connections that are tied to their thread."""
    if (place := info.get(_NAME)) is None:
        if not (type(driver).__module__.startswith("aiosqlite") and hasattr(driver, "_execute")):
            return
        try:
            driver._conn.in_transaction  # noqa: B018
            driver._conn.cursor().close()
        except sqlite3.ProgrammingError:  # check_same_thread
            return
        place = info[_NAME] = InPlace(driver)
    place.on = True


def switch_off(info: dict[str, Any]) -> None:
    """The connection goes back to the application."""
    if (place := info.get(_NAME)) is not None:
        place.on = False
