"""Time that is moved by hand, and time-outs measured by it."""

from __future__ import annotations

import asyncio
import time

import pytest

from tidings.clock import ManualClock, SystemClock, timeout


async def test_time_stands_still_until_it_is_moved() -> None:
    """Nothing but `advance` moves either of the two times, and it moves both alike."""
    clock = ManualClock(start=1000.0)
    assert (clock.time(), clock.monotonic()) == (1000.0, 0.0)
    await clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (1002.5, 2.5)


async def test_timers_fire_in_the_order_of_their_times() -> None:
    """Each timer runs at its own moment, equal ones in the order they were set, later ones not at all."""
    clock = ManualClock()
    fired: list[tuple[str, float]] = []
    for name, due in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0), ("never", 9.0)):
        clock.call_later(due, lambda name=name: fired.append((name, clock.monotonic())))  # type: ignore[misc]
    await clock.advance(5)
    assert fired == [("a", 1.0), ("b1", 2.0), ("b2", 2.0), ("c", 3.0)]
    assert clock.next_due == pytest.approx(4.0)


async def test_a_timer_set_by_a_timer_fires_in_the_same_advance() -> None:
    """What a timer starts within the time that passes also happens within it, at its own moment."""
    clock = ManualClock()
    moments: list[float] = []

    async def tick() -> None:
        for _ in range(3):
            await clock.sleep(1.0)
            moments.append(clock.monotonic())

    task = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await clock.advance(10)
    await task
    assert moments == [1.0, 2.0, 3.0]


async def test_a_cancelled_timer_never_fires() -> None:
    """Cancelling before the time takes the timer out; cancelling again or afterwards is harmless."""
    clock = ManualClock()
    fired: list[str] = []
    gone = clock.call_later(1.0, lambda: fired.append("gone"))
    kept = clock.call_later(1.0, lambda: fired.append("kept"))
    gone.cancel()
    assert clock.next_due == 1.0
    await clock.advance(2)
    gone.cancel()
    kept.cancel()
    assert fired == ["kept"]
    assert clock.next_due is None


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    """A task cancelled in its sleep leaves nothing behind that would be waited for."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(60))
    await asyncio.sleep(0)
    assert clock.next_due == 60
    task.cancel()
    await asyncio.wait({task})
    assert clock.next_due is None


async def test_sleeping_for_no_time_lets_others_run() -> None:
    """`sleep(0)` returns without time passing, after others had their turn."""
    clock = ManualClock()
    other = asyncio.Event()
    asyncio.get_running_loop().call_soon(other.set)
    await clock.sleep(0)
    assert other.is_set()
    assert clock.monotonic() == 0.0


async def test_a_timeout_is_measured_by_the_clock() -> None:
    """The block ends with `TimeoutError` when the clock says so, and the scope knows that it expired."""
    clock = ManualClock()
    expired: list[bool] = []

    async def wait_for_ever() -> bool:
        async with timeout(clock, 5) as scope:
            try:
                await asyncio.Event().wait()
            finally:
                expired.append(scope.expired())
        return True

    task = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0)
    await clock.advance(4.9)
    assert not task.done()
    await clock.advance(0.2)
    with pytest.raises(TimeoutError):
        await task
    assert expired == [True]
    assert clock.next_due is None


async def test_a_timeout_that_is_not_reached_leaves_no_timer() -> None:
    """Leaving the block in time takes its timer away; None never ends."""
    clock = ManualClock()
    async with timeout(clock, 5):
        inside = clock.next_due
    async with timeout(clock, None):
        without = clock.next_due
    assert (inside, without, clock.next_due) == (5, None, None)


async def test_the_machines_clock_calls_back_and_sleeps() -> None:
    """The system clock's timers run on the loop, also with a time that is over already."""
    clock = SystemClock()
    called = asyncio.Event()
    clock.call_later(-1.0, called.set)
    async with timeout(clock, 10):
        await called.wait()
        await clock.sleep(0)
    assert abs(clock.time() - time.time()) < 5
    before = clock.monotonic()
    assert clock.monotonic() >= before
