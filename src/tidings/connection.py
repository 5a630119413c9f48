"""The connection of a bus: begun by the first use, for all who wait for it, and at home in one event loop.

A bus has one at a time. The application's loop comes first: what `publish_sync` has connected in a thread of its own,
before that loop ran or used the bus, is closed and gives way to the application's connection.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import Closed, ConfigError

if TYPE_CHECKING:
    from .running import Running

log = logging.getLogger("tidings")

T = TypeVar("T")


class Elsewhere(ConfigError):
    """The bus is connected in another event loop."""


class Connection:
    """One connection, under way or there.

    It comes about in a task of its own: who waits for it may give up without taking it from the others, and when
    nobody waits any more it goes on, for the next one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Running | None = None) -> None:
        self.loop = loop
        self.running = running
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def begin(cls, start: Callable[[], Coroutine[Any, Any, Running]]) -> Connection:
        """Connect; returns at once."""
        connection = cls(asyncio.get_running_loop())
        connection._task = asyncio.create_task(connection._run(start), name="tidings-connect")
        connection._task.add_done_callback(_told)
        return connection

    async def _run(self, start: Callable[[], Coroutine[Any, Any, Running]]) -> None:
        self.running = await start()

    @property
    def failed(self) -> bool:
        return self.running is None and self._task is not None and self._task.done()

    async def made(self) -> Running:
        """Wait until it is there. Raises what connecting raises, and `Closed` when it is closed meanwhile."""
        if self._task is not None and self.running is None:
            if asyncio.current_task() is self._task:
                raise ConfigError("a function given to bus.on_start uses the bus, which is connected only after it")
            await asyncio.wait({self._task})  # a cancel ends the waiting, and not the task
            if self._task.cancelled():
                raise Closed("the bus was closed while it connected")
            self._task.result()
        assert self.running is not None
        return self.running

    async def close(self) -> None:
        """Give up connecting; what is there is drained and closed."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        if self.running is not None:
            await self.running.close()


def _told(task: asyncio.Task[None]) -> None:
    """Whoever waits is told by `made`; maybe nobody does any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("not connected: %s", error)


class Background:
    """An event loop in a thread of its own, and the calls that are under way there."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._calls: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="tidings-publish", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.close()

    def call(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin it there; for threads."""
        return asyncio.run_coroutine_threadsafe(self._noted(call), self.loop)

    async def _noted(self, call: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            return await call
        finally:
            self._calls.discard(task)

    def let_go(self, connection: Connection) -> Future[None]:
        """Close a connection of this loop, once all calls that are under way have ended; for other threads."""
        return asyncio.run_coroutine_threadsafe(self._let_go(connection), self.loop)

    async def _let_go(self, connection: Connection) -> None:
        if self._calls:
            await asyncio.wait(self._calls)
        try:
            await connection.close()
        except Exception as error:
            log.warning("what publish_sync had connected was not closed well: %s", error)

    def stop(self, last: Coroutine[Any, Any, None]) -> None:
        """Do a last thing there, then end the loop and its thread."""
        asyncio.run_coroutine_threadsafe(last, self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


class Connections:
    """The connections of one bus, one at a time."""

    def __init__(self, name: str, start: Callable[[], Coroutine[Any, Any, Running]]) -> None:
        self._name = name
        self._start = start
        self._choosing = threading.Lock()  # loops of several threads may want it; never held over an await
        self.current: Connection | None = None
        self.background: Background | None = None

    @property
    def running(self) -> Running | None:
        """What is connected now."""
        return None if self.current is None else self.current.running

    async def connect(self) -> Running:
        """Connect in this loop if it has not happened yet. See `Bus.connect`."""
        return await self._chosen().made()

    def _chosen(self) -> Connection:
        loop = asyncio.get_running_loop()
        with self._choosing:
            current = self.current
            if current is None or current.failed:
                self.current = Connection.begin(self._start)
            elif current.loop is not loop:
                if self.background is None or current.loop is not self.background.loop:
                    raise self._elsewhere(current)
                leaving = self.background.let_go(current)
                self.current = Connection.begin(lambda: self._start_after(leaving))
            assert self.current is not None
            return self.current

    def _elsewhere(self, current: Connection) -> Elsewhere:
        if current.running is not None and current.running.lent:
            return Elsewhere(
                f"<Bus {self._name!r}> has a TestBus in another event loop. A TestClient runs the application in a "
                "loop of its own: enter the TestBus there, client.portal.wrap_async_context_manager(TestBus(bus)), "
                "or send requests with httpx.ASGITransport(app)"
            )
        return Elsewhere(
            f"<Bus {self._name!r}> is connected in another event loop, or was in one that ended without closing it: "
            "write `async with bus:` inside each asyncio.run(…), or publish_sync, which shares one between threads"
        )

    async def _start_after(self, leaving: Future[None]) -> Running:
        await asyncio.wait({asyncio.wrap_future(leaving)})
        return await self._start()

    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that the bus is connected in, or will be at once; None where there is none that runs."""
        with self._choosing:
            if self.current is not None and (self.current.failed or not self.current.loop.is_running()):
                self.current = None  # not connected, or its loop has ended without closing it
            return None if self.current is None else self.current.loop

    async def close(self) -> None:
        """Close what there is, in the loop that it belongs to. See `Bus.close`."""
        current = self.current
        if current is None or (current.running is not None and current.running.lent):
            return
        try:
            if current.loop is asyncio.get_running_loop():
                await current.close()  # a handler that publishes while the workers drain still finds it here
            elif current.loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(current.close(), current.loop))
        finally:
            if self.current is current:
                self.current = None

    def after_fork(self) -> None:
        """The parent's connection, loop and lock are not the child's: its threads are not there."""
        if self.background is not None:
            # Kept, not closed: closing would take the parent's loop apart, whose selector is shared over the fork.
            _OF_PARENTS.append(self.background)
        self.current, self.background, self._choosing = None, None, threading.Lock()


_OF_PARENTS: list[Background] = []
