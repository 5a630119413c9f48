"""The lock of a namespace for changing what has no compare-and-set: consumers and streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ...errors import EngineUnavailable
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect
from .layout import Layout

T = TypeVar("T")

_LIFE: Final = 10
"""Seconds after which the server ends a lock whose holder has died."""
_SAFE: Final = 4.0
"""Seconds for which a holder writes: what it sends last has the rest of the lock's life to arrive."""
_TRIES: Final = 3


class Lock:
    """A lock that is held, as far as its holder can know."""

    def __init__(self, asked: float) -> None:
        self._ends = asked + _SAFE

    @property
    def over(self) -> bool:
        return asyncio.get_running_loop().time() >= self._ends

    def left(self) -> float:
        """Seconds in which something may still be written. Raises `EngineUnavailable` when it is too late."""
        if self.over:
            raise EngineUnavailable("the namespace's lock is held no longer")
        return self._ends - asyncio.get_running_loop().time()


async def locked(js: JetStream, layout: Layout, work: Callable[[Lock], Awaitable[T]]) -> T:
    """Read and write what nobody else changes meanwhile; each write takes `lock.left()` seconds at most.

    Who was held up for longer begins anew, since others may have read or written in between; so `work` may be repeated.
    Raises `EngineUnavailable` when that goes on.
    """
    for _ in range(_TRIES):
        lock, sequence = await _acquire(js, layout)
        try:
            done = await work(lock)
            if not lock.over:
                return done
        except EngineUnavailable:
            if not lock.over:
                raise
        finally:
            await js.delete_message(layout.control, sequence)
    raise EngineUnavailable(
        f"changing a group or the roots took longer than {_SAFE:g} s, {_TRIES} times in a row: is this machine or "
        f"{js.link.server} overloaded? Try again when it is not"
    )


async def _acquire(js: JetStream, layout: Layout) -> tuple[Lock, int]:
    """The lock, and where it is written."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 2 * _LIFE + js.timeout
    while True:
        lock = Lock(loop.time())
        try:
            ack = await js.store(layout.lock, b"", expect(0) | {"Nats-TTL": f"{_LIFE}s"})
        except ApiError as error:
            if error.code != WRONG_SEQUENCE or loop.time() > until:
                raise
            await asyncio.sleep(0.05)
        else:
            return lock, ack.seq
