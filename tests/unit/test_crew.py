"""Work that is begun at once, in as few tasks as it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest

from tidings.crew import Crew

Work = Callable[[int], Awaitable[object]]
seen: ContextVar[str] = ContextVar("seen", default="nothing")


class Log:
    """What a crew did: each piece with its task, and what was passed on together."""

    def __init__(self, work: Work) -> None:
        self.crew: Crew[int] = Crew("crew", self._do, self._pass_on)
        self.tasks: list[asyncio.Task[object] | None] = []
        self.done: list[int] = []
        self.passed: list[list[int]] = []
        self._work = work

    async def _do(self, piece: int) -> None:
        self.tasks.append(asyncio.current_task())
        await self._work(piece)
        self.done.append(piece)

    def _pass_on(self) -> None:
        if new := self.done[len(self.all_passed) :]:
            self.passed.append(new)

    @property
    def all_passed(self) -> list[int]:
        return [piece for together in self.passed for piece in together]

    def take(self, *pieces: int) -> None:
        for piece in pieces:
            self.crew.take(piece)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def nothing(_: int) -> None: ...


async def test_quick_pieces_need_one_task() -> None:
    """Pieces that wait for nothing are done by one task, in their order, and are passed on together; what comes later
    is done by the same task."""
    log = Log(nothing)
    log.take(1, 2, 3)
    await until(lambda: log.passed)
    assert log.passed == [[1, 2, 3]]
    log.take(4)
    await until(lambda: len(log.done) == 4)
    assert len(set(log.tasks)) == 1
    await log.crew.finish()


async def test_one_that_waits_holds_up_nobody() -> None:
    """While a piece waits the others are done, and passed on."""
    go = asyncio.Event()

    async def work(piece: int) -> None:
        if piece == 1:
            await go.wait()

    log = Log(work)
    log.take(1, 2, 3)
    await until(lambda: [2, 3] in log.passed)
    assert 1 not in log.done
    log.take(4)
    await until(lambda: 4 in log.done)
    go.set()
    await log.crew.finish()
    assert sorted(log.done) == [1, 2, 3, 4]
    assert sorted(log.all_passed) == [1, 2, 3, 4]


async def test_all_that_wait_wait_at_once() -> None:
    """Pieces that wait run beside each other, each in a task of its own; those that end together are passed on
    together, and their tasks do what comes next."""
    barrier = asyncio.Barrier(5)

    async def work(_: int) -> None:
        await barrier.wait()
        await asyncio.sleep(0)

    log = Log(work)
    log.take(*range(5))
    await until(lambda: len(log.done) == 5)
    assert len(set(log.tasks)) == 5
    await until(lambda: log.passed)
    assert [sorted(together) for together in log.passed] == [[0, 1, 2, 3, 4]]
    log.take(*range(5, 10))
    await until(lambda: len(log.done) == 10)
    assert len(set(log.tasks)) == 5
    await log.crew.finish()


async def test_each_has_a_context_of_its_own() -> None:
    """What a piece sets is not seen by the next one in the same task, and not by a later step of another."""
    found = []

    async def work(piece: int) -> None:
        found.append(seen.get())
        seen.set(str(piece))
        if piece % 2:
            await asyncio.sleep(0)
        found.append(seen.get())

    log = Log(work)
    log.take(1, 2, 3, 4)
    await log.crew.finish()
    assert found.count("nothing") == 4
    assert sorted(set(found)) == ["1", "2", "3", "4", "nothing"]


async def test_a_cancel_that_is_left_behind_harms_no_other() -> None:
    """A piece that cancels its own task ends, and every other one is done all the same."""

    async def work(piece: int) -> None:
        if piece == 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    log = Log(work)
    log.take(1, 2, 3, 4)
    await until(lambda: log.done == [1, 2, 3, 4])
    await log.crew.finish()
    assert log.all_passed == [1, 2, 3, 4]


async def test_cancelling_the_end_cancels_what_runs() -> None:
    """A `finish` that is cancelled cancels what waits, and begins nothing more."""
    cancelled = []

    async def work(piece: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(piece)
            raise

    log = Log(work)
    log.take(1, 2)
    await until(lambda: len(log.tasks) == 2)
    ending = asyncio.create_task(log.crew.finish())
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    await until(lambda: sorted(cancelled) == [1, 2])
    assert log.done == []
