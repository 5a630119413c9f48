"""Work that comes piece by piece and is begun at once, in as few tasks as it needs.

A task goes on to the next piece when one comes to its end without waiting for anything, and rests when there is none;
while one waits, other tasks take what is left. So quick work costs no task of its own, and slow work holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Final, Generic, TypeVar

from .stepping import in_context

T = TypeVar("T")

_TURN: Final = 0.004
"""Seconds after which a task lets everything else have its turn."""
_SPARE: Final = 16
"""Tasks that rest at most, for pieces that wait."""


class Crew(Generic[T]):
    """Does each piece in a context of its own, beside the others. `through` is called when all that came together has
    been begun, and after pieces that had to wait: to pass their results on together."""

    def __init__(
        self, name: str, work: Callable[[T], Coroutine[Any, Any, None]], through: Callable[[], object]
    ) -> None:
        self._name = name
        self._work = work
        self._through = through
        self._left: deque[T] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        """Those of the tasks whose piece waits for something."""
        self._resting: list[asyncio.Future[None]] = []
        """Of those that have nothing to do."""
        self._turning = False
        """Whether `through` is called when the event loop turns."""
        self._finishing = False

    def take(self, piece: T) -> None:
        """Begin it when the event loop turns; returns at once."""
        self._left.append(piece)
        self._spread(1)

    async def finish(self) -> None:
        """Returns when all is done that was taken; cancelling this cancels it. Nothing may be taken any more."""
        self._finishing = True
        self._wake(len(self._resting))
        try:
            while self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._left.clear()
            self._through()

    def _spread(self, most: int) -> None:
        """Have so many tasks at hand for what is left: those that are about to look, that rest, and new ones."""
        most -= len(self._tasks) - len(self._busy) - len(self._resting)
        if most <= 0:
            return
        for _ in range(most - self._wake(most)):
            task = asyncio.create_task(self._run(), name=self._name)
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _wake(self, most: int) -> int:
        """How many of so many rested."""
        woken = self._resting[-most:] if most else []
        del self._resting[len(self._resting) - len(woken) :]
        for resting in woken:
            if not resting.done():
                resting.set_result(None)
        return len(woken)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._busy.discard(task)
        if self._left:
            self._spread(1)

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop, own = asyncio.get_running_loop(), copy_context()
        over = loop.time() + _TURN

        def waits() -> None:
            self._busy.add(task)
            if self._left:
                self._spread(len(self._left))

        try:
            # After a cancel that somebody has left behind, the next piece gets a fresh task.
            while not task.cancelling():
                if self._left:
                    await in_context(own.copy(), self._work(self._left.popleft()), waits)
                    if task in self._busy:
                        self._busy.discard(task)
                        self._turn(loop)
                    if loop.time() < over:
                        continue
                self._pass_on()
                if self._left:
                    await asyncio.sleep(0)
                elif not self._finishing and len(self._resting) < _SPARE:
                    await self._rest(loop)
                else:
                    return
                over = loop.time() + _TURN
        finally:
            self._pass_on()

    async def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        resting = loop.create_future()
        self._resting.append(resting)
        try:
            await resting
        except asyncio.CancelledError:
            if resting in self._resting:
                self._resting.remove(resting)
            raise

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Others may come to their end in the same turn."""
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turned)

    def _turned(self) -> None:
        self._turning = False
        self._through()

    def _pass_on(self) -> None:
        if not self._turning:
            self._through()
