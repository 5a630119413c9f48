"""Handlers that share a transaction take turns: one runs at a time, and some may meet at a common flush.

A handler keeps its turn while it awaits, so that what it has read is still true when it writes. It gives the turn away
only where it ends or waits in `meet`.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Turns:
    """Who may run, for the tasks of one group."""

    def __init__(self) -> None:
        self._taken = False
        self._queue: deque[asyncio.Future[None]] = deque()
        self._met: list[asyncio.Future[None]] = []
        self._on_their_way = 0
        self._quiet = asyncio.Event()
        self.closed = False

    def expect(self, tasks: int) -> None:
        """So many tasks will come, each to `take` a turn and to `end` it."""
        self._on_their_way += tasks
        self._quiet.clear()

    async def take(self) -> None:
        """Wait for one's turn: first come, first served. Cancelled, it has none."""
        if self._taken and not self.closed:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next()
                raise
        self._taken = True

    def end(self) -> None:
        """Whoever has the turn has ended."""
        self._next()
        self.left()

    def left(self) -> None:
        """One that was expected will take no turn any more."""
        self._on_their_way -= 1
        if self._on_their_way == 0:
            self._quiet.set()

    async def meet(self) -> None:
        """Give the turn away and wait for `resume`, then for a turn. Cancelled by a time limit of its own, it waits for
        a turn all the same, as it may go on."""
        met = asyncio.get_running_loop().create_future()
        self._met.append(met)
        self.end()
        try:
            await met
        except asyncio.CancelledError:
            if met in self._met:
                self._met.remove(met)
                self.expect(1)
            await self.take()
            raise
        await self.take()

    def close(self) -> None:
        """Nobody has to wait for a turn any more, and whoever waits for `quiet` goes on: the group is given up."""
        self.closed = True
        self._quiet.set()

    async def quiet(self) -> None:
        """Wait until every task has ended or waits in `meet`."""
        if self._on_their_way and not self.closed:
            await self._quiet.wait()

    def resume(self) -> None:
        """The common flush is done: whoever waits in `meet` goes on, in turns."""
        met, self._met = self._met, []
        self.expect(len(met))
        for one in met:
            if not one.done():
                one.set_result(None)

    def _next(self) -> None:
        self._taken = False
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                self._taken = True
                turn.set_result(None)
                return


@types.coroutine
def watched(work: Coroutine[Any, Any, T], waits: Callable[[], object]) -> Generator[Any, Any, T]:
    """Run `work` as `await work` does, and call `waits` each time it waits for something."""
    step: Callable[[Any], Any] = work.send
    given: Any = None
    try:
        while True:
            awaited = step(given)
            waits()
            try:
                given, step = (yield awaited), work.send
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:
                given, step = error, work.throw
    except StopIteration as stop:
        result: T = stop.value
        return result
