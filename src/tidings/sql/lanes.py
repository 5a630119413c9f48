"""Where SQLAlchemy's calls run: an async session's in the event loop, a sync session's in a thread of their own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from tidings.threads import Threads

T = TypeVar("T")
P = ParamSpec("P")


async def finish(work: Awaitable[T], grace: float | None = None) -> T:
    """Wait for `work` to its end even when the caller is cancelled meanwhile; the cancel is raised afterwards.

    With `grace`, the work itself is cancelled that many seconds after the caller was.
    """
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    until: float | None = None
    while not task.done():
        try:
            await asyncio.wait({task}, timeout=None if until is None else max(0.0, until - loop.time()))
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
            if until is None and grace is not None:
                until = loop.time() + grace
        if until is not None and loop.time() >= until:
            task.cancel()
            until = None
            grace = None
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen; the cancel goes before it
        raise cancelled
    return task.result()


class Lane(Protocol):
    """A session, and where its calls run."""

    async def open(self) -> None:
        """Make the session."""
        ...

    async def call(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a plain function with the sync session. Cancelled in the loop, the function is cancelled with it; in
        a thread it goes on, and the next call waits for it."""
        ...

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the application where it may use the session."""
        ...

    async def for_handler(self, annotation: type) -> Any:
        """What a handler with that annotation gets."""
        ...

    def release(self) -> None:
        """The session is closed, or waits for a call that does not end: nothing more will be asked."""
        ...


class LoopLane:
    """An async session: SQLAlchemy runs the sync one behind it in the event loop."""

    def __init__(self, make: Callable[[], AsyncSession]) -> None:
        self._make = make
        self._session: AsyncSession

    async def open(self) -> None:
        self._session = self._make()

    async def call(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._session.run_sync(function, *args, **kwargs)

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result

    async def for_handler(self, annotation: type) -> Any:
        return await self._session.connection() if issubclass(annotation, AsyncConnection) else self._session

    def release(self) -> None:
        pass


class ThreadLane:
    """A sync session with a thread of its own: neither sessions nor SQLite's connections like to change threads."""

    def __init__(self, make: Callable[[], Session], threads: Threads) -> None:
        self._make = make
        self._threads = threads
        self._thread = threads.take()
        self._session: Session

    async def open(self) -> None:
        self._session = await self._thread.run(self._make)

    async def call(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._thread.run(function, self._session, *args, **kwargs)

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._thread.run(function, *args)

    async def for_handler(self, annotation: type) -> Any:
        return await self.call(Session.connection) if issubclass(annotation, Connection) else self._session

    def release(self) -> None:
        self._threads.give_back(self._thread)
