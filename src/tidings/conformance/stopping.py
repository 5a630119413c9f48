"""Processes that stop, crash, hang and start again; follow-ups; publishing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime

from tidings import Bus, Message
from tidings.engine import Outgoing
from tidings.errors import ConfigError, InvalidMessage, TooLarge
from tidings.message import follow_up_id

from .app import Ordered, Packed, application, bodies, handled, letters, process, reached
from .case import case
from .steps import raising, take_later
from .world import World


@case("bus")
async def stopping_finishes_what_runs(world: World) -> None:
    """A process that stops lets its running handlers end and settles them; what had not begun is handled by others,
    with its first attempt."""
    begun: list[int] = []
    ended: list[tuple[int, int]] = []
    release = asyncio.Event()

    def shop() -> Bus:
        bus = application(world)

        @bus.on(Ordered, group="pack", concurrency=2)
        async def pack(order: Ordered, about: Message) -> None:
            begun.append(order.number)
            await release.wait()
            ended.append((order.number, about.attempt))

        return bus

    async with process(world, application(world, "web"), work=False) as web:
        async with process(world, shop()):
            await web.bus.publish_many([Ordered(number=number) for number in range(6)])
            await reached(world, lambda: len(begun) == 2, "two are running")
            asyncio.get_running_loop().call_later(0.1, release.set)
        assert len(ended) == 2
        async with process(world, shop()):
            await handled(world, web.engine, "pack")
    assert sorted(ended) == [(number, 1) for number in range(6)]
    assert len(begun) == 6


@case("bus")
async def a_hanging_handler_is_handed_back(world: World) -> None:
    """A handler that does not end within the grace time is cancelled and its event handed back: another process has
    it at once, with no attempt burnt."""
    attempts: list[tuple[str, int]] = []
    stuck, free = application(world), application(world)

    @stuck.on(Ordered, group="pack")
    async def hang(about: Message) -> None:
        attempts.append(("stuck", about.attempt))
        await asyncio.Event().wait()

    @free.on(Ordered, group="pack")
    async def pack(about: Message) -> None:
        attempts.append(("free", about.attempt))

    async with process(world, stuck):
        await stuck.publish(Ordered(number=1))
        await reached(world, lambda: bool(attempts), "it hangs")
    begun = world.clock.monotonic()
    async with process(world, free) as running:
        await reached(world, lambda: len(attempts) == 2, "the other has it")
        assert world.clock.monotonic() - begun < world.lease
        await handled(world, running.engine, "pack")
    assert attempts == [("stuck", 1), ("free", 1)]


@case("bus")
async def a_crash_costs_no_attempt(world: World) -> None:
    """When a process dies in the middle of its handlers, others do the work after the leases, each with its first
    attempt, and nothing is dead."""
    attempts: list[tuple[str, int]] = []
    doomed, other = application(world), application(world)
    engine = await world.engine()

    @doomed.on(Ordered, group="pack")
    async def die(order: Ordered, about: Message) -> None:
        attempts.append(("doomed", about.attempt))
        await asyncio.Event().wait()

    @other.on(Ordered, group="pack")
    async def pack(order: Ordered, about: Message) -> None:
        attempts.append(("other", about.attempt))

    async with process(world, doomed, engine=engine):
        await doomed.publish_many([Ordered(number=number) for number in range(5)])
        await reached(world, lambda: len(attempts) == 5, "all are in hand")
        await world.crash(engine)
    async with process(world, other) as running:
        await reached(world, lambda: len(attempts) == 10, "the other does the work")
        await handled(world, running.engine, "pack")
        assert await running.engine.dead_letters() == []
    assert attempts == [("doomed", 1)] * 5 + [("other", 1)] * 5


@case("bus")
async def follow_ups_leave_before_the_end(world: World) -> None:
    """What a handler returns is published, in its order, before its event counts as handled."""
    seen: list[int] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> list[Packed]:
        return [Packed(number=order.number), Packed(number=order.number + 1)]

    @bus.on(Packed, group="send", concurrency=1)
    async def send(packed: Packed) -> None:
        seen.append(packed.number)

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        await reached(world, lambda: len(seen) == 2, "both follow")
        await handled(world, running.engine, "pack", "send")
        assert await bodies(running.engine, "events.shop.packed") == [b'{"number":1}', b'{"number":2}']
    assert seen == [1, 2]


@case("bus")
async def follow_ups_of_a_rerun_are_stored_once(world: World) -> None:
    """A process that dies after its follow-up left and before its event was settled: the rerun's follow-up has the
    same id, and is stored once."""
    runs: list[str] = []
    doomed, other = application(world), application(world)
    engine, beside = await world.engine(), await world.engine()

    @doomed.on(Ordered, group="pack")
    async def die(order: Ordered, about: Message) -> None:
        body, id = b'{"number":1}', follow_up_id(about, 0)
        await beside.publish([Outgoing("events.shop.packed", body, {"ce-id": id}, id)])
        runs.append("doomed")
        await world.crash(engine)

    @other.on(Ordered, group="pack")
    async def pack(order: Ordered) -> Packed:
        runs.append("other")
        return Packed(number=order.number)

    async with process(world, doomed, engine=engine):
        await doomed.publish(Ordered(number=1))
        await reached(world, lambda: bool(runs), "the first run")
    async with process(world, other) as running:
        await reached(world, lambda: len(runs) == 2, "the second run")
        await handled(world, running.engine, "pack")
        assert await bodies(running.engine, "events.shop.packed") == [b'{"number":1}']
    assert runs == ["doomed", "other"]


@case("bus")
async def the_chain_is_known(world: World) -> None:
    """Everything that follows from a message carries the id of the first as correlation, and of the one before as
    causation: what a handler returns, and what it publishes."""
    seen: list[Message[object]] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> Packed:
        await bus.publish("events.shop.noted", {"number": order.number})
        return Packed(number=order.number)

    @bus.on("events.shop.packed", "events.shop.noted", group="audit")
    async def audit(about: Message) -> None:
        seen.append(about)

    async with process(world, bus):
        receipt = await bus.publish(Ordered(number=1))
        await reached(world, lambda: len(seen) == 2, "both follow")
    assert {about.subject for about in seen} == {"events.shop.packed", "events.shop.noted"}
    assert {(about.correlation_id, about.causation_id) for about in seen} == {(receipt.id, receipt.id)}
    assert {about.source for about in seen} == {"shop"}


@case("bus")
async def a_wrong_result_is_told(world: World) -> None:
    """A handler that returns what is no event has failed, and the dead letter says what it returned."""
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> object:
        return {"number": order.number}

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        [letter] = await letters(world, running.engine, "pack")
    assert (letter.failure.error, letter.reason) == ("TypeError", "handler_error")
    assert "returned dict" in letter.failure.message


@case("bus")
async def bad_input_is_refused_before_the_wire(world: World) -> None:
    """What cannot be carried or read again raises at `publish`, and nothing is stored, of a list not even the good
    ones."""
    bus = application(world)
    async with process(world, bus, work=False) as running:
        for bad in ({"x": float("nan")}, {"x": "\ud800"}, {"x": object()}, "\x00" * 3):
            with raising(InvalidMessage):
                await bus.publish("events.shop.x", bad)
        for subject in ("events..x", "events.*", "events.a b", "elsewhere.x", "events." + "x" * 300):
            with raising(InvalidMessage, ConfigError):
                await bus.publish(subject, {})
        with raising(TooLarge):
            await bus.publish("events.shop.x", "x" * (running.engine.max_message + 1))
        with raising(InvalidMessage):
            await bus.publish_many([Ordered(number=1), object()])
        assert await bodies(running.engine, "events.>") == []


@case("bus")
async def many_keep_their_order(world: World) -> None:
    """`publish_many` stores in the order given and answers in it; each receipt names id, subject and place."""
    bus = application(world)
    async with process(world, bus, work=False) as running:
        receipts = await bus.publish_many([Ordered(number=number) for number in range(300)])
        entries = await running.engine.read(["events.>"], 0, 1000)
    assert [entry.body for entry in entries] == [b'{"number":%d}' % number for number in range(300)]
    assert [entry.position for entry in entries] == [receipt.position for receipt in receipts]
    assert [entry.headers["ce-id"] for entry in entries] == [receipt.id for receipt in receipts]


@case("bus")
async def an_id_is_stored_once(world: World) -> None:
    """Publishing again with the same id on the same subject stores nothing and says so, from another process too."""
    one, two = application(world), application(world)
    async with process(world, one, work=False) as running, process(world, two, work=False):
        first = await one.publish(Ordered(number=1), id="order-1")
        again = await two.publish(Ordered(number=1), id="order-1")
        other = await two.publish(Packed(number=1), id="order-1")
        assert (first.duplicate, again.duplicate, other.duplicate) == (False, True, False)
        assert again.position == first.position
        assert len(await bodies(running.engine, "events.>")) == 2


@case("bus")
async def delayed_events_come_at_their_time(world: World) -> None:
    """An event published with `delay=` or `at=` is handed out then, to whoever is there, and not before."""
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> None: ...

    async with process(world, bus, work=False) as running:
        begun = world.clock.time()
        await bus.publish(Ordered(number=1), delay=2 * world.lease)
        await bus.publish(Ordered(number=2), at=datetime.fromtimestamp(begun + 2.5 * world.lease, UTC))
        first = await take_later(world, running.engine, "pack", 2 * world.lease)
        assert first.entry.body == b'{"number":1}'
        await reached(world, lambda: _there(running.engine.subjects("events.>"), 2), "the second comes as well")


async def _there(counting: Awaitable[dict[str, int]], count: int) -> bool:
    return sum((await counting).values()) == count
