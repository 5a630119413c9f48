"""`publish_sync`: publishing from threads and WSGI applications.

Where the bus already runs in an event loop of this process, that loop does the work. Else a thread with a loop of
its own is started at the first call, per process: after a fork the child starts its own, because threads and
connections do not survive one.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, EngineUnavailable, Unconfirmed
from .events import spec_of
from .message import new_id
from .publisher import Receipt

if TYPE_CHECKING:
    from .bus import Bus
    from .running import Running


_OF_PARENTS: list[asyncio.AbstractEventLoop] = []


class SyncPublisher:
    """The blocking side of one bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        after_fork = weakref.WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (method := after_fork()) and method())

    def publish(self, what: Any, body: Any, timeout: float, options: dict[str, Any]) -> Receipt:
        """Publish and wait. Raises what `Bus.publish` raises; `Unconfirmed` after `timeout` seconds."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ConfigError("publish_sync would block this event loop: write `await bus.publish(…)`")
        id = options["id"] = new_id() if options.get("id") is None else options["id"]
        future = asyncio.run_coroutine_threadsafe(self._bus.publish(what, body, **options), self._running_loop())
        done, _ = concurrent.futures.wait([future], timeout)
        if done and not future.cancelled():
            return future.result()
        future.cancel()
        why = "the event loop ended before the answer came" if done else f"no answer within {timeout:g} s"
        raise Unconfirmed(f"{why}: publish again with id={id!r}", (Receipt(id, _subject(what)),))

    def connected(self, timeout: float) -> Running:
        """The bus, connected in whatever loop of this process it runs in. Raises what `Bus.connect` raises;
        `EngineUnavailable` after `timeout` seconds, `ConfigError` where waiting would block an event loop."""
        running = self._bus.connected
        if running is not None and running.loop.is_running():
            return running
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ConfigError("connecting would block this event loop: connect the bus before, `async with bus:`")
        future = asyncio.run_coroutine_threadsafe(self._bus.connect(), self._running_loop())
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise EngineUnavailable(f"the bus is not connected after {timeout:g} s: is the engine there?") from None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            running = self._bus.connected
            if running is not None and running.loop.is_running():
                return running.loop
            if running is not None:
                self._bus.forget_connection()  # its loop has ended without closing it
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(self._loop,), name="tidings-publish", daemon=True)
                thread.start()
                atexit.register(self._stop, self._loop, thread, os.getpid())
            return self._loop

    def _after_fork(self) -> None:
        """The parent's connection, loop and lock are not ours: its threads are not here."""
        self._bus.forget_connection()
        if self._loop is not None:
            # Kept, not closed: closing would take the parent's loop apart, whose selector is shared over the fork.
            _OF_PARENTS.append(self._loop)
        self._loop, self._lock = None, threading.Lock()

    def _stop(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
        if pid == os.getpid() and loop.is_running():
            asyncio.run_coroutine_threadsafe(self._bus.close(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(5)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _subject(what: Any) -> str:
    spec = spec_of(type(what))
    return spec.subject if spec is not None else str(what)
