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
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, Unconfirmed
from .publisher import Receipt

if TYPE_CHECKING:
    from .bus import Bus


class SyncPublisher:
    """The blocking side of one bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    def publish(self, what: Any, body: Any, timeout: float, options: dict[str, Any]) -> Receipt:
        """Publish and wait. Raises what `Bus.publish` raises; `Unconfirmed` after `timeout` seconds."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ConfigError("publish_sync would block this event loop: write `await bus.publish(…)`")
        future = asyncio.run_coroutine_threadsafe(self._bus.publish(what, body, **options), self._running_loop())
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise Unconfirmed(f"no answer within {timeout:g} s: publish again with the same id=") from None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._pid != os.getpid():
                # A fork: the parent's connection and loop are not ours.
                self._bus.forget_connection()
                self._loop, self._pid = None, os.getpid()
            running = self._bus.connected
            if running is not None and running.loop.is_running():
                return running.loop
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="tidings-publish", daemon=True).start()
                atexit.register(self._stop, self._loop, self._pid)
            return self._loop

    def _stop(self, loop: asyncio.AbstractEventLoop, pid: int) -> None:
        if pid == os.getpid() and loop.is_running():
            asyncio.run_coroutine_threadsafe(self._bus.close(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
