"""Attempts against deliveries: messages that kill their process, and things that are away."""

from __future__ import annotations

import asyncio
from functools import partial

from tidings import Bus, Message
from tidings.engine import Dead, Done, Engine, Release, RetryAfter
from tidings.errors import Conflict, EngineUnavailable
from tidings.work.suspects import CRASHES, UNEXPLAINED

from .app import Ordered, application, handled, letters, process, reached
from .case import case
from .steps import FAILURE, finish, group, publish, raising, take, take_one
from .world import World


@case("seam")
async def begun_and_never_ended_is_a_crash(world: World) -> None:
    """A message that was begun by a reader that died counts one crash for each time; those it held beside, none."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a", "b")
    for crashes in range(3):
        doomed = await world.engine()
        a, b = sorted(await take(doomed, "g", 2), key=lambda delivery: delivery.entry.position)
        assert (a.crashes, a.attempts, b.crashes, b.attempts) == (crashes, 0, 0, 0)
        await doomed.begin(a)
        await doomed.begin(a)
        await world.crash(doomed)
        await world.wait(1.2 * world.lease)
    a = min(await take(engine, "g", 2), key=lambda delivery: delivery.entry.position)
    assert (a.crashes, a.deliveries) == (3, 4)


@case("seam")
async def an_outcome_takes_the_beginning_back(world: World) -> None:
    """Begun and then retried or released is no crash; attempts counted before stay, crashes too."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a")
    delivery = await take_one(engine, "g")
    await engine.begin(delivery)
    await engine.settle([RetryAfter(delivery, 0.0, FAILURE)])
    delivery = await take_one(engine, "g")
    assert (delivery.attempts, delivery.crashes) == (1, 0)
    await engine.begin(delivery)
    await engine.settle([Release(delivery)])
    delivery = await take_one(engine, "g")
    assert (delivery.attempts, delivery.crashes) == (1, 0)

    doomed = await world.engine()
    await engine.settle([Release(delivery)])
    await doomed.begin(await take_one(doomed, "g"))
    await world.crash(doomed)
    await _passes(world)
    delivery = await take_one(engine, "g")
    await engine.begin(delivery)
    await engine.settle([RetryAfter(delivery, 0.0, FAILURE)])
    delivery = await take_one(engine, "g")
    assert (delivery.attempts, delivery.crashes) == (2, 1)


async def _passes(world: World) -> None:
    """A lease ends."""
    await world.wait(1.2 * world.lease)


@case("seam")
async def a_beginning_is_kept_over_a_restart(world: World) -> None:
    """What was noted before a handler began is there after the engine has been started anew."""
    doomed, engine = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a")
    await doomed.begin(await take_one(doomed, "g"))
    await world.crash(doomed)
    await world.restart()
    await _passes(world)
    delivery = await take_one(engine, "g")
    assert (delivery.attempts, delivery.crashes) == (0, 1)


@case("seam")
async def nobody_begins_what_is_not_his(world: World) -> None:
    """Beginning a delivery that was settled, or whose lease has moved on, raises and counts nothing."""
    late, engine = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a")
    lost = await take_one(late, "g")
    await _passes(world)
    delivery = await take_one(engine, "g")
    with raising(Conflict):
        await late.begin(lost)
    await engine.settle([Release(delivery)])
    with raising(Conflict):
        await engine.begin(delivery)
    delivery = await take_one(engine, "g")
    assert (delivery.attempts, delivery.crashes) == (0, 0)
    await engine.settle([Done(delivery)])


@case("seam")
async def handing_back_is_no_suspicion(world: World) -> None:
    """However often a message is released, or comes back from a reader that stops, nobody suspects it of killing its
    readers; those that die with it count, beside all that."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a", "b", "c")
    for _ in range(5):
        reader = await world.engine()
        held = await take_one(reader, "g")
        assert held.unexplained < UNEXPLAINED
        await reader.settle([Release(held)])
        await take_one(reader, "g")  # and what came ahead goes back with it
        await reader.close()
    taken = await take(engine, "g", 3)
    assert [delivery.unexplained < UNEXPLAINED for delivery in taken] == [True] * 3
    assert {delivery.attempts for delivery in taken} == {0}
    before = {delivery.entry.position: delivery.unexplained for delivery in taken}
    await engine.settle([Release(delivery) for delivery in taken])
    doomed = await world.engine()
    lost = await take(doomed, "g", 3)
    await world.crash(doomed)
    await _passes(world)
    again = await take(engine, "g", 3)
    assert all(delivery.unexplained > before[delivery.entry.position] for delivery in again), lost
    await finish(engine, again)


@case("seam")
async def redriven_has_never_crashed(world: World) -> None:
    """A `crash_loop` dead letter counts its crashes as attempts; put back, the message begins with none."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a")
    for _ in range(2):
        doomed = await world.engine()
        await doomed.begin(await take_one(doomed, "g"))
        await world.crash(doomed)
        await _passes(world)
    await engine.settle([Dead(await take_one(engine, "g"), "crash_loop", FAILURE)])
    [letter] = await engine.dead_letters("g")
    assert (letter.reason, letter.attempts) == ("crash_loop", 2)
    assert await engine.redrive([letter]) == 1
    delivery = await take_one(engine, "g")
    assert (delivery.attempts, delivery.crashes, delivery.deliveries) == (0, 0, 1)
    await finish(engine, [delivery])


def _poisoned(world: World, engine: Engine, seen: list[tuple[int, int]]) -> Bus:
    """A process that is killed by order 3."""
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered, about: Message) -> None:
        if order.number == 3:
            await world.crash(engine)
            await asyncio.Event().wait()
        seen.append((order.number, about.attempt))

    return bus


@case("bus")
async def a_crash_loop_is_caught(world: World) -> None:
    """An event that kills its process is a dead letter after its limit, told from those in hand beside it by running
    alone; each of them is handled, on its first attempt."""
    seen: list[tuple[int, int]] = []
    async with process(world, application(world, "web"), work=False) as web:
        engine = await world.engine()
        async with process(world, _poisoned(world, engine, seen), engine=engine):
            await web.bus.publish_many([Ordered(number=number) for number in range(8)])
            await reached(world, partial(_closed, engine), "the first crash")
        for _ in range(UNEXPLAINED + CRASHES - 1):
            engine = await world.engine()
            async with process(world, _poisoned(world, engine, seen), engine=engine):
                await reached(world, partial(_closed, engine), "the next crash")
        engine = await world.engine()
        async with process(world, _poisoned(world, engine, seen), engine=engine):
            [letter] = await letters(world, engine, "pack")
            await handled(world, web.engine, "pack")
    assert (letter.reason, letter.entry.body, letter.attempts) == ("crash_loop", b'{"number":3}', CRASHES)
    assert set(seen) == {(number, 1) for number in range(8) if number != 3}


async def _closed(engine: Engine) -> bool:
    try:
        await engine.stats()
    except Exception:
        return True
    return False


@case("bus")
async def an_outage_burns_nothing(world: World) -> None:
    """While what a handler needs is away its events wait, with no attempt counted, and few of them are tried; when it
    is back they are all handled."""
    away, tries = True, 0
    attempts: list[int] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered, about: Message) -> None:
        nonlocal tries
        tries += 1
        if away:
            raise EngineUnavailable("nobody answers")
        attempts.append(about.attempt)

    async with process(world, bus) as running:
        await bus.publish_many([Ordered(number=number) for number in range(50)])
        await reached(world, lambda: tries > 18, "it fails, and probes")
        assert await running.engine.dead_letters() == []
        away = False
        await handled(world, running.engine, "pack")
    assert attempts == [1] * 50


@case("bus")
async def one_that_always_fails_is_no_outage(world: World) -> None:
    """An event on which the engine or the database fails while others are handled is to blame itself, and dies."""
    bus = application(world)

    @bus.on(Ordered, group="pack", concurrency=2)
    async def pack(order: Ordered) -> None:
        if order.number == 0:
            raise EngineUnavailable("nobody answers")

    async with process(world, bus) as running:
        number = 0
        while not (dead := await running.engine.dead_letters("pack")):
            await bus.publish(Ordered(number=number))
            number += 1
            await world.wait(world.lease / 20)
    [letter] = dead
    assert (letter.reason, letter.attempts, letter.failure.error) == ("handler_error", 3, "EngineUnavailable")
