"""What time does to events: new versions of their types, expiry, a group's rate, and where a new group begins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tidings import Event, Message
from tidings.engine import Engine

from .app import Ordered, application, handled, letters, process, reached
from .case import case
from .steps import message
from .world import World


class Priced(Event, subject="events.shop.priced"):
    """As an old release knows it."""

    euros: int


class PricedAnew(Event, subject="events.shop.priced", version=2):
    """As a new release knows it."""

    cents: int


@case("bus")
async def older_versions_are_brought_up_to_date(world: World) -> None:
    """A message of an older version passes its upcasters; of a foreign one without a type it is taken as the newest."""
    bus, seen = application(world), list[int]()

    @bus.upcast(PricedAnew, from_version=1)
    def in_cents(body: dict[str, Any]) -> dict[str, Any]:
        return {"cents": 100 * body["euros"]}

    @bus.on(PricedAnew, group="books")
    async def books(price: PricedAnew) -> None:
        seen.append(price.cents)

    async with process(world, application(world), work=False) as old:
        await old.publisher.send([old.publisher.compose(Priced(euros=1))])
        await old.engine.publish([message(b'{"cents":5}', subject="events.shop.priced")])
        async with process(world, bus) as running:
            await bus.publish(PricedAnew(cents=7))
            await reached(world, lambda: len(seen) == 3, "all are handled")
            assert await running.engine.dead_letters("books") == []
    assert sorted(seen) == [5, 7, 100]


@case("bus")
async def newer_versions_wait_for_their_workers(world: World) -> None:
    """What is too new for an old worker is handed back, and handled by the first new one; no attempt is counted."""
    old, new = application(world), application(world)
    prices, attempts = list[int](), set[int]()
    for bus in (old, new):
        bus.configure(version_grace=100 * world.lease)

    @old.on(Priced, group="books")
    async def books(price: Priced) -> None:
        raise AssertionError("it is none of ours")

    @new.on(PricedAnew, group="books")
    async def books_anew(price: PricedAnew, about: Message) -> None:
        prices.append(price.cents)
        attempts.add(about.attempt)

    async with process(world, old) as running:
        await running.publisher.send([running.publisher.compose(PricedAnew(cents=n)) for n in range(10)])
        await reached(world, lambda: _postponed(running.engine, 10), "the old worker hands them back")
        assert await running.engine.dead_letters("books") == []
    async with process(world, new) as running:
        await reached(world, lambda: len(prices) == 10, "the new one handles them")
        await handled(world, running.engine, "books")
        assert await running.engine.dead_letters("books") == []
    assert (sorted(prices), attempts) == (list(range(10)), {1})


async def _postponed(engine: Engine, count: int) -> bool:
    stats = (await engine.stats()).groups["books"]
    return stats.waiting == 0 and stats.leased + stats.delayed == count


@case("bus")
async def expired_events_are_kept(world: World) -> None:
    """An event that nobody handled in time is a dead letter `expired`; redriven, it is handled all the same."""
    bus, seen = application(world), list[int]()

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> None:
        seen.append(order.number)

    async with process(world, bus, work=False) as running:
        await bus.publish(Ordered(number=1), expires=world.lease / 2)
        await bus.publish(Ordered(number=2), expires=1000 * world.lease)
        await world.wait(world.lease)
        await running.work()
        [letter] = await letters(world, running.engine, "pack")
        assert (letter.reason, letter.attempts) == ("expired", 0)
        await reached(world, lambda: seen == [2], "the other one is handled")
        assert await running.engine.redrive([letter]) == 1
        await reached(world, lambda: seen == [2, 1], "the redriven one is handled")
        await handled(world, running.engine, "pack")
        assert await running.engine.dead_letters("pack") == []


@case("bus")
async def a_group_keeps_its_rate(world: World) -> None:
    """With `rate=`, a worker begins that many messages a second, evenly and however many wait."""
    bus, times = application(world), list[float]()
    rate = 5 / world.lease

    @bus.on(Ordered, group="pack", rate=rate)
    async def pack(order: Ordered) -> None:
        times.append(world.clock.monotonic())

    async with process(world, bus) as running:
        await bus.publish_many([Ordered(number=number) for number in range(12)])
        begin = world.clock.monotonic()
        await reached(world, lambda: len(times) == 12, "all are handled")
        await handled(world, running.engine, "pack")
    burst = max(1.0, rate)
    early = [n for n, time in enumerate(times) if n + 1 > burst + (time - begin) * rate + 0.01]
    assert early == [], f"{early} began too early at {rate:g}/s: {[time - begin for time in times]}"
    assert times[-1] - begin >= (12 - burst) / rate - 0.01


@case("bus")
async def a_group_begins_at_a_time(world: World) -> None:
    """With `start=datetime(…)`, a new group gets what was stored then and later, whatever other groups had."""
    bus, seen = application(world), list[int]()
    async with process(world, application(world), work=False) as old:
        await old.publisher.send([old.publisher.compose(Ordered(number=number)) for number in range(5)])
        await world.wait(world.moment)
        moment = datetime.fromtimestamp((await old.engine.read(["events.>"], 4, 1))[0].time + world.moment / 2, UTC)
        await old.publisher.send([old.publisher.compose(Ordered(number=number)) for number in range(5, 9)])

    @bus.on(Ordered, group="late", start=moment)
    async def late(order: Ordered) -> None:
        seen.append(order.number)

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=9))
        await handled(world, running.engine, "late")
        await reached(world, lambda: len(seen) == 5, "all of then and later are handled")
    assert sorted(seen) == [5, 6, 7, 8, 9]
