"""`publish_sync`: publishing from threads and WSGI applications.

Where the bus is connected in an event loop of this process, or is about to be, that loop does the work. Else a thread
with a loop of its own is started at the first call, per process: after a fork the child starts its own, because threads
and connections do not survive one.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from .connection import Background, Connections, Elsewhere
from .errors import ConfigError, EngineUnavailable, Unconfirmed
from .events import spec_of
from .message import new_id
from .publisher import Receipt

if TYPE_CHECKING:
    from .bus import Bus
    from .running import Running

T = TypeVar("T")


class _NoAnswer(Exception):
    """The text says why."""


class SyncPublisher:
    """The blocking side of one bus."""

    def __init__(self, bus: Bus, connections: Connections) -> None:
        self._bus = bus
        self._connections = connections
        self._lock = threading.Lock()
        after_fork = weakref.WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (method := after_fork()) and method())

    def publish(self, what: Any, body: Any, timeout: float, options: dict[str, Any]) -> Receipt:
        """Publish and wait. Raises what `Bus.publish` raises; `Unconfirmed` after `timeout` seconds."""
        _refuse_to_block("publish_sync would block this event loop: write `await bus.publish(…)`")
        id = options["id"] = new_id() if options.get("id") is None else options["id"]
        try:
            return self._run(lambda: self._bus.publish(what, body, **options), timeout)
        except _NoAnswer as why:
            raise Unconfirmed(f"{why}: publish again with id={id!r}", (Receipt(id, _subject(what)),)) from None

    def connected(self, timeout: float) -> Running:
        """The bus, connected in whatever loop of this process it runs in. Raises what `Bus.connect` raises;
        `EngineUnavailable` after `timeout` seconds, `ConfigError` where waiting would block an event loop."""
        running = self._bus.connected
        if running is not None and running.loop.is_running():
            return running
        _refuse_to_block("connecting would block this event loop: connect the bus before, `async with bus:`")
        try:
            return self._run(self._bus.connect, timeout)
        except _NoAnswer as why:
            raise EngineUnavailable(f"the bus is not connected ({why}): is the engine there?") from None

    def _run(self, call: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Run it in the bus's loop, and wait."""
        until = time.monotonic() + timeout
        while True:
            future = self._begin(call())
            done, _ = concurrent.futures.wait([future], max(0.0, until - time.monotonic()))
            if not done or future.cancelled():
                future.cancel()
                raise _NoAnswer(
                    "the event loop ended before the answer came" if done else f"no answer within {timeout:g} s"
                )
            try:
                return future.result()
            except Elsewhere:
                continue  # another loop took the bus just then, before the call reached it

    def _begin(self, call: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        with self._lock:
            own = self._connections.background
            loop = self._connections.loop()
            if loop is None and own is None:
                own = self._connections.background = Background()
                atexit.register(self._stop, own, os.getpid())
        if own is not None and loop in (None, own.loop):
            return own.call(call)
        assert loop is not None
        return asyncio.run_coroutine_threadsafe(call, loop)

    def _after_fork(self) -> None:
        self._connections.after_fork()
        self._lock = threading.Lock()

    def _stop(self, own: Background, pid: int) -> None:
        if pid == os.getpid() and own.loop.is_running():
            own.stop(self._close_in(own.loop))

    async def _close_in(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._connections.loop() is loop:
            await self._connections.close()


def _refuse_to_block(why: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(why)


def _subject(what: Any) -> str:
    spec = spec_of(type(what))
    return spec.subject if spec is not None else str(what)
