"""Turns: one runs at a time, in order, and all meet at a common flush."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tidings.clock import ManualClock
from tidings.work.pace import CAREFUL, FEWEST, FIRST, MOST, SLOW, Pace
from tidings.work.turns import Turns, watched


async def run(turns: Turns, *works: Callable[[], Awaitable[object]]) -> list[asyncio.Task[None]]:
    async def one(work: Callable[[], Awaitable[object]]) -> None:
        await turns.take()
        try:
            await work()
        finally:
            turns.end()

    turns.expect(len(works))
    return [asyncio.create_task(one(work)) for work in works]


async def test_one_runs_at_a_time_in_order() -> None:
    """Whoever awaits keeps the turn; the others come after it, in their order."""
    turns, seen = Turns(), []

    def work(name: str) -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            seen.append(f"{name} begins")
            await asyncio.sleep(0)
            seen.append(f"{name} ends")

        return run

    await run(turns, work("a"), work("b"), work("c"))
    await turns.quiet()
    assert seen == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


async def test_those_that_meet_wait_for_all_others() -> None:
    """`quiet` comes when everybody has ended or waits in `meet`; after `resume` they go on one after another."""
    turns, seen = Turns(), []

    def meeting(name: str) -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            await turns.meet()
            seen.append(f"{name} goes on")
            await asyncio.sleep(0)
            seen.append(f"{name} ends")

        return run

    async def short() -> None:
        seen.append("short")

    await run(turns, meeting("a"), short, meeting("b"))
    await turns.quiet()
    assert seen == ["short"]
    turns.resume()
    await turns.quiet()
    assert seen == ["short", "a goes on", "a ends", "b goes on", "b ends"]


async def test_one_that_stops_waiting_still_takes_a_turn() -> None:
    """A handler whose own time limit ends its wait goes on only when nobody else runs."""
    turns, seen = Turns(), []
    release = asyncio.Event()

    async def impatient() -> None:
        try:
            async with asyncio.timeout(0.001):
                await turns.meet()
        except TimeoutError:
            seen.append("impatient goes on")

    async def slow() -> None:
        await release.wait()
        seen.append("slow ends")

    tasks = await run(turns, impatient, slow)
    asyncio.get_running_loop().call_later(0.05, release.set)
    await turns.quiet()
    await asyncio.gather(*tasks)
    assert seen == ["slow ends", "impatient goes on"]


async def test_what_is_watched_behaves_as_awaited() -> None:
    """`watched` gives results, errors and cancels as `await` does, and tells each wait."""
    waits: list[None] = []
    gate: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        try:
            return await gate
        finally:
            await asyncio.sleep(0)

    task = asyncio.create_task(_as_coroutine(watched(work(), lambda: waits.append(None))))
    await asyncio.sleep(0)
    gate.set_result(7)
    assert await task == 7
    assert len(waits) == 2
    gate = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_as_coroutine(watched(work(), lambda: None)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _as_coroutine(work: Awaitable[int]) -> int:
    return await work


def test_the_size_grows_and_is_halved() -> None:
    """Full groups that go well make the next ones larger, up to the most; one that is rolled back halves them."""
    pace = Pace("g", ManualClock())
    assert pace.size == FIRST
    pace.clean(1)
    assert pace.size == FIRST
    for _ in range(20):
        pace.clean(pace.size)
    assert pace.size == MOST
    pace.spoilt()
    assert pace.size == MOST // 2
    for _ in range(20):
        pace.spoilt()
    assert pace.size == FEWEST


def test_what_has_failed_before_proves_itself_first() -> None:
    """What comes back after a failure runs by itself, until one of those succeeds; and again once a group is spoilt or
    one of those fails."""
    pace = Pace("g", ManualClock())
    seen = [pace.wary]
    for well in (True, False, True):
        pace.tried_again(well)
        seen.append(pace.wary)
    pace.clean(5)
    pace.spoilt()
    assert [*seen, pace.wary] == [True, False, True, False, True]


def test_care_lasts_for_a_while() -> None:
    """After a refusal the next groups are careful; it ends when enough of them went well."""
    pace = Pace("g", ManualClock())
    seen = [pace.careful]
    pace.beware()
    for _ in range(CAREFUL + 1):
        seen.append(pace.careful)
        pace.clean(1)
    assert seen == [False, *[True] * CAREFUL, False]


async def test_a_slow_handler_gets_transactions_of_its_own_for_a_while() -> None:
    """More than a few slow calls among many demote the group; it is tried again later, and later still if it is no
    better."""
    clock = ManualClock()
    pace = Pace("g", clock)
    together = []
    for slow_calls, seconds in ((3, 0), (1, 0), (0, 31), (4, 31), (0, 30)):
        for _ in range(slow_calls):
            pace.took(2 * SLOW)
        await clock.advance(seconds)
        together.append(pace.together)
    assert together == [True, False, True, False, True]


def test_a_slow_call_now_and_then_is_no_slow_handler() -> None:
    """One slow call in twenty-five demotes nothing."""
    pace = Pace("g", ManualClock())
    for number in range(1000):
        pace.took(2 * SLOW if number % 25 == 0 else 0.0)
    assert pace.together
