"""`start=datetime(…)`: a new group begins with what was stored at a time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidings
from handlers import New, Saved, new_bus
from tidings import claims
from tidings.clock import ManualClock
from tidings.engine import Entry, Outgoing
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.testing import TestBus


async def taken(start: datetime, zone: tzinfo = UTC) -> list[str]:
    """What a new group gets of three items that were stored a minute apart."""
    bus, seen = new_bus(), []

    @bus.on(New, group="late", start=start.astimezone(zone))
    async def late(new: New) -> None:
        seen.append(new.item)

    clock = ManualClock()
    store = MemoryStore(clock)
    engine = MemoryEngine(store)
    await engine.open()
    for item in ("first", "second", "third"):
        body = b'{"item":"%s"}' % item.encode()
        await engine.publish([Outgoing("events.new", body, {}, item), Outgoing("events.saved", body, {}, item)])
        await clock.advance(60)
    await engine.close()
    testing = TestBus(bus)
    testing.clock, testing.store = clock, store
    async with testing as t:
        await t.settle()
        await bus.publish(New("now"))
        await bus.publish(Saved("other"))
        await t.settle()
    return seen


BEGIN = datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3600, ["first", "second", "third", "now"]),
        (0, ["first", "second", "third", "now"]),
        (1, ["second", "third", "now"]),
        (60, ["second", "third", "now"]),
        (119.9, ["third", "now"]),
        (121, ["now"]),
        (86400, ["now"]),
    ],
)
async def test_a_new_group_begins_at_a_time(seconds: float, expected: list[str]) -> None:
    """With the first event stored then or later; a time to come is now. The time zone does not matter."""
    start = BEGIN + timedelta(seconds=seconds)
    assert await taken(start) == expected
    assert await taken(start, timezone(timedelta(hours=5))) == expected


def test_a_time_without_a_zone_is_refused() -> None:
    """It would mean another moment on each machine."""

    async def handle(new: New) -> None: ...

    with pytest.raises(tidings.ConfigError, match="no time zone"):
        new_bus().on(New, group="g", start=datetime(2026, 1, 1))(handle)


class Counting(MemoryEngine):
    """Counts what is read."""

    reads = 0

    async def read(self, *what: Any, **more: Any) -> list[Entry]:
        self.reads += 1
        return await super().read(*what, **more)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["events.a", "events.b"]), st.integers(0, 3)), max_size=30),
    st.integers(0, 40),
)
def test_the_position_of_a_time_is_found(steps: list[tuple[str, int]], wanted: int) -> None:
    """The same as by reading everything, in a number of reads that grows with the logarithm."""

    async def find() -> tuple[int | None, int | None, int]:
        clock = ManualClock(0.0)
        engine = Counting(MemoryStore(clock))
        await engine.open()
        for number, (subject, pause) in enumerate(steps):
            await clock.advance(pause)
            await engine.publish([Outgoing(subject, b"1", {}, str(number))])
        entries = await engine.read(["events.a"], 0, 100)
        slow = next((entry.position for entry in entries if entry.time >= wanted), None)
        engine.reads = 0
        quick = await claims.position_at(engine, "events.a", wanted, len(steps))
        await engine.close()
        return slow, quick, engine.reads

    slow, quick, reads = asyncio.run(find())
    assert quick == slow
    assert reads <= 6
