"""`rate=`: how many messages a worker process begins per second."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import tidings
from tidings.clock import ManualClock
from tidings.rate import Rate, per_second
from workbench import Bench, New, until

pytest_plugins = ("workbench",)


@pytest.mark.parametrize(
    ("rate", "value"), [("100/s", 100), ("30/m", 0.5), ("36/h", 0.01), ("2.5/s", 2.5), (7, 7), (0.25, 0.25)]
)
def test_a_rate_is_read(rate: str | float, value: float) -> None:
    """Per second, minute or hour, or a plain number per second."""
    assert per_second(rate) == value


@pytest.mark.parametrize("rate", ["100", "0/s", "-1/s", "1/d", "a/s", 0, -1, True, float("inf"), float("nan"), "٣/s"])
def test_what_is_no_rate_is_refused_with_its_handler(rate: Any) -> None:
    """At registration, naming the handler and what to write."""

    async def handle(new: New) -> None: ...

    with pytest.raises(tidings.ConfigError, match=r"handle: rate=.*write '100/s'"):
        tidings.Bus("todo").on(New, group="g", rate=rate)(handle)


async def begun(clock: ManualClock, rate: Rate, seconds: float, most: int = 1000) -> list[float]:
    """When messages begin of which there are always more, for so many seconds."""
    times: list[float] = []

    async def run() -> None:
        while True:
            ready = min(most, await rate.turn())
            rate.take(ready)
            times.extend([clock.monotonic()] * ready)

    running = asyncio.create_task(run())
    await asyncio.sleep(0)
    await clock.advance(seconds)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return times


async def test_tokens_come_evenly() -> None:
    """One at once, then one each quarter of a second at 4/s."""
    clock = ManualClock()
    assert await begun(clock, Rate(clock, 4), 2.1) == pytest.approx([0.25 * n for n in range(9)], abs=1e-6)


async def test_an_idle_worker_makes_up_for_one_second_at_most() -> None:
    """After an hour of nothing, one second's worth at once and then the rate again."""
    clock = ManualClock()
    rate = Rate(clock, 10)
    await clock.advance(3600)
    times = await begun(clock, rate, 1.0)
    assert sum(time == 3600 for time in times) == 10
    assert len(times) == 20


async def test_slow_rates_keep_one_token() -> None:
    """At one per minute an idle hour is good for one message, not for sixty."""
    clock = ManualClock()
    rate = Rate(clock, 1 / 60)
    await clock.advance(3600)
    assert len(await begun(clock, rate, 59)) == 1


async def test_a_group_begins_at_its_rate(bench: Bench) -> None:
    """Seventeen waiting messages at 4/s, and sixteen places: one at once, four more each second, all handled."""
    seen: list[float] = []

    async def handle(new: New) -> None:
        seen.append(bench.clock.monotonic())

    await bench.worker(handle, rate="4/s")
    bench.publish(*range(17))
    await until(lambda: seen)
    for expected in (5, 9, 13, 17):
        await bench.clock.advance(1)
        await until(lambda: len(seen) >= expected)  # noqa: B023
        assert len(seen) == expected


async def test_no_lease_is_held_for_what_may_not_begin(bench: Bench) -> None:
    """At one per minute a worker takes one of ten; the others wait for whoever is free."""
    seen: list[int] = []

    async def handle(new: New) -> None:
        seen.append(new.n)

    await bench.worker(handle, rate="1/m")
    bench.publish(*range(10))
    await until(lambda: seen and bench.counts[1] == 0)
    assert bench.counts == (9, 0, 0, 0)
    await bench.clock.advance(61)
    await until(lambda: bench.counts[0] == 8)
    assert seen == [0, 1]


async def test_without_a_rate_nothing_waits(bench: Bench) -> None:
    """All at once, without the clock moving."""
    seen: list[int] = []

    async def handle(new: New) -> None:
        seen.append(new.n)

    await bench.worker(handle)
    bench.publish(*range(100))
    await until(lambda: len(seen) == 100)
