"""What servers and wires do to one: `kill -9`, freezing, cuts, lost answers. Nobody restarts anything of ours."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from tidings.engine import Done, Engine, Headers, Lagged, Reply, Signal, Stored
from tidings.errors import Closed, Conflict, EngineUnavailable, RequestError, Unconfirmed

from .case import case, eventually
from .steps import finish, glance, group, heard, message, nothing, publish, raising, take, take_one, texts
from .world import WiredWorld, World

T = TypeVar("T")

FREEZE = 3.0
LONG_FREEZE = 9.0
"""Long enough for connections to be given up, and made again in vain."""
NOTICED = 15.0
"""Seconds after which a connection that carries nothing is given up at the latest."""


@case("seam", wired=True)
async def acknowledged_survives_kill_9(world: WiredWorld) -> None:
    """Whatever `publish` returned for is there after `kill -9` to everything at any moment, once and where it said."""
    engine = await world.engine(patience=40.0)
    receipts: dict[str, int] = {}

    async def publish_on(name: str) -> None:
        for number in range(1000):
            [stored] = await engine.publish([message(f"{name}-{number}")])
            receipts[f"{name}-{number}"] = stored.position

    publishing = [asyncio.create_task(publish_on(f"p{n}")) for n in range(4)]
    await eventually(lambda: _at_least(receipts, 40), "publishing goes on")
    await world.kill()
    for task in publishing:
        task.cancel()
    await asyncio.gather(*publishing, return_exceptions=True)
    acknowledged = dict(receipts)
    await world.start()

    found = {entry.body.decode(): entry.position for entry in await engine.read(["events.>"], 0, 5000)}
    assert {text: found.get(text) for text in acknowledged} == acknowledged


@case("seam", wired=True)
async def a_lost_leader_costs_time_only(world: WiredWorld) -> None:
    """`kill -9` to the server that leads, under publishers and readers at work: each message is confirmed, stored
    once, and handled."""
    writer, reader = await world.engine(patience=40.0), await world.engine(patience=40.0)
    await writer.declare([group(world)])
    handled: set[str] = set()
    sent = {f"{name}-{number}" for name in "abcd" for number in range(100)}

    async def publish_all(name: str) -> None:
        for number in range(100):
            await writer.publish([message(f"{name}-{number}")])

    async def handle_all() -> None:
        while handled != sent:
            got = await reader.pull("g", 10, 30.0)
            with contextlib.suppress(EngineUnavailable):  # then it comes again
                await finish(reader, got)
                handled.update(texts(got))

    working = [asyncio.create_task(handle_all()), *(asyncio.create_task(publish_all(name)) for name in "abcd")]
    try:
        await eventually(lambda: _at_least(handled, 40), "handling goes on")
        await world.fail_over()
        await asyncio.gather(*working)
    finally:
        for task in working:
            task.cancel()
    entries = await writer.read(["events.>"], 0, 1000)
    assert sorted(entry.body.decode() for entry in entries) == sorted(sent)


@case("seam", wired=True)
async def a_lost_answer_stores_once(world: WiredWorld) -> None:
    """When the answer to a publish is lost, `publish` repeats it with the same id: stored once, and confirmed."""
    engine, link = await world.linked(patience=3.0)
    await publish(engine, "before")
    link.lose_receipt()
    [stored] = await publish(engine, "once")
    assert link.lost == 1
    entries = await engine.read(["events.>"], 0, 10)
    assert [(entry.body, entry.position) for entry in entries][1:] == [(b"once", stored.position)]


@case("seam", wired=True)
async def an_answer_that_never_comes_is_unconfirmed(world: WiredWorld) -> None:
    """Without any answer in time `publish` says `Unconfirmed`, not failed; repeating with the same id stores once."""
    engine, link = await world.linked(patience=2.0)
    outgoing = message("maybe")
    for _ in range(50):
        link.lose_receipt()
    with raising(Unconfirmed):
        await engine.publish([outgoing])
    assert link.lost >= 1
    [stored] = await (await world.engine()).publish([outgoing])
    assert stored.duplicate
    assert len(await (await world.engine()).read(["events.>"], 0, 10)) == 1


@case("seam", wired=True)
async def a_cut_in_the_middle_of_many(world: WiredWorld) -> None:
    """A wire that breaks in the middle of a publish of many, wherever in a message: all are stored, once, in order."""
    engine, link = await world.linked()
    for turn, size in enumerate((1, 700, 5_003, 20_011)):
        batch = [message(f"{turn}-{number}" + "x" * 100, subject=f"events.t{turn}") for number in range(150)]
        link.drop_after(size)
        receipts = await engine.publish(batch)
        entries = await engine.read([f"events.t{turn}"], 0, 1000)
        by_place = {entry.position: entry.body for entry in entries}
        assert len(entries) == len(batch)
        assert [by_place[receipt.position] for receipt in receipts] == [outgoing.body for outgoing in batch]


@case("seam", wired=True)
async def a_frozen_server_harms_nobody(world: WiredWorld) -> None:
    """A server that stands still for some seconds costs those seconds: who has time left gets no error, nothing is
    stored twice, and what waits goes on."""
    reader, writer = await world.engine(), await world.engine()
    await reader.declare([group(world)])
    waiting = asyncio.create_task(reader.pull("g", 1, 60.0))
    await world.wait(world.moment)
    await world.freeze()
    calls = [asyncio.create_task(writer.publish([message(str(number))])) for number in range(20)]
    looking = asyncio.create_task(writer.read(["events.>"], 0, 100))
    await world.wait(FREEZE)
    await world.thaw()
    stored: list[list[Stored]] = await asyncio.gather(*calls)
    await looking
    assert len({receipt.position for [receipt] in stored}) == 20
    assert len(await writer.read(["events.>"], 0, 100)) == 20
    handled = await waiting
    await finish(reader, handled)
    seen = {delivery.entry.position for delivery in handled}
    while len(seen) < 20:
        got = await reader.pull("g", 20, 30.0)
        await finish(reader, got)
        seen |= {delivery.entry.position for delivery in got}


@case("seam", wired=True)
async def a_long_freeze_costs_its_time_only(world: WiredWorld) -> None:
    """A server that stands still until its connections are given up, with callers at work all the while: who has time
    left gets no error, and each message is stored once and handled."""
    reader, writer = await world.engine(patience=40.0), await world.engine(patience=40.0)
    await reader.declare([group(world)])
    pulls = [asyncio.create_task(reader.pull("g", 1, 60.0)) for _ in range(2)]
    reading = asyncio.create_task(writer.read(["events.>"], 0, 1, wait=60.0))
    await world.wait(world.moment)
    await world.freeze()
    calls = [asyncio.create_task(writer.publish([message(str(number))])) for number in range(20)]
    await world.wait(LONG_FREEZE)
    late = asyncio.create_task(publish(reader, "late"))
    await world.thaw()
    await asyncio.gather(*calls, late)
    assert len(await reading) == 1
    got = [delivery for taken in await asyncio.gather(*pulls) for delivery in taken]
    await finish(reader, got)
    handled = set(texts(got))
    while len(handled) < 21:
        got = await reader.pull("g", 20, 30.0)
        await finish(reader, got)
        handled |= set(texts(got))
    assert len(await writer.read(["events.>"], 0, 100)) == 21


@case("seam", wired=True)
async def everything_goes_on_after_a_cut(world: WiredWorld) -> None:
    """After the wire was cut for a while, waiting pulls, reads, listeners and responders go on by themselves."""
    engine, link = await world.linked()
    other = await world.engine()
    await engine.declare([group(world)])
    async with engine.listen(["live.news"]) as signals, engine.serve("ask.me", "g", _echo):
        pull = asyncio.create_task(engine.pull("g", 1, 60.0))
        reading = asyncio.create_task(engine.read(["events.>"], 0, 1, wait=60.0))
        await world.wait(world.moment)
        link.cut()
        await publish(other, "meanwhile")
        await world.wait(world.moment)
        link.mend()
        got = await pull
        assert texts(got) == ["meanwhile"]
        await finish(engine, got)
        assert [entry.body for entry in await reading] == [b"meanwhile"]
        await _until_heard(other, signals)
        await _until_answered(other)


@case("seam", wired=True)
async def three_drops_in_a_row(world: WiredWorld) -> None:
    """Three drops within three seconds, in whatever they interrupt, leave a reader that still reads."""
    engine, link = await world.linked()
    other = await world.engine()
    await engine.declare([group(world)])
    handled: set[str] = set()

    async def handle() -> None:
        while True:
            try:
                got = await engine.pull("g", 5, 30.0)
                await finish(engine, got)
            except EngineUnavailable:
                continue
            handled.update(texts(got))

    handling = asyncio.create_task(handle())
    try:
        for number in range(3):
            await publish(other, *[f"{number}-{n}" for n in range(5)])
            link.drop()
            await world.wait(0.6)
        await publish(other, "last")
        await eventually(lambda: _at_least(handled, 16), "each message is handled")
    finally:
        handling.cancel()
        await asyncio.gather(handling, return_exceptions=True)


@case("seam", wired=True)
async def a_drop_in_a_call_costs_a_moment(world: WiredWorld) -> None:
    """What may be done twice goes on over the next connection when one is lost in its middle: who begins to listen or
    to answer is heard of, leases are renewed, groups declared, the log is read."""
    engine, link = await world.linked()
    other = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "held")
    held = await take_one(engine, "g")

    async def interrupted(call: Awaitable[T]) -> T:
        link.stall()
        calling = asyncio.ensure_future(call)
        await world.wait(world.moment)
        link.drop()
        return await calling

    before = held.deadline
    await interrupted(engine.extend([held]))
    assert held.deadline > before
    await interrupted(engine.declare([group(world)]))
    assert [entry.body for entry in await interrupted(engine.read(["events.>"], 0, 1))] == [b"held"]
    async with contextlib.AsyncExitStack() as stack:
        await interrupted(stack.enter_async_context(engine.serve("ask.me", "g", _echo)))
        signals = await interrupted(stack.enter_async_context(engine.listen(["live.news"])))
        await _until_reached(other, anext(signal async for signal in signals if signal != Lagged(None)))
        await _until_answered(other)


@case("seam", wired=True)
async def a_dead_wire_is_noticed(world: WiredWorld) -> None:
    """A connection that carries nothing any more without saying so is replaced within 15 seconds, with all that
    waits on it."""
    engine, link = await world.linked()
    other = await world.engine()
    await engine.declare([group(world)])
    async with engine.listen(["live.news"]) as signals:
        pull = asyncio.create_task(engine.pull("g", 1, 60.0))
        await world.wait(world.moment)
        link.stall()
        begun = world.clock.monotonic()
        await publish(other, "news")
        assert texts(await pull) == ["news"]
        await _until_heard(other, signals)
        assert world.clock.monotonic() - begun < NOTICED


@case("seam", wired=True)
async def a_slow_wire_is_only_slow(world: WiredWorld) -> None:
    """On a wire that takes its time each way everything works, and no lease is lost that is extended in time."""
    engine, link = await world.linked()
    other = await world.engine()
    await engine.declare([group(world)])
    link.delay(world.lease / 12)
    await publish(engine, "a")
    held = await take_one(engine, "g")
    for _ in range(4):
        await world.wait(world.lease / 4)
        await engine.extend([held])
    await nothing(world, other, "g")
    await engine.extend([held])
    await finish(engine, [held])
    await world.wait(1.5 * world.lease)
    await nothing(world, other, "g")


@case("seam", wired=True)
async def publish_while_down_fails_in_time(world: WiredWorld) -> None:
    """While nobody is there `publish` and the others fail in bounded time, and nothing of it is sent later."""
    engine, link = await world.linked(patience=1.0)
    await engine.declare([group(world)])
    await publish(engine, "before")
    link.cut()
    begun = world.clock.monotonic()
    calls: list[Awaitable[object]] = [
        engine.publish([message("lost")]),
        engine.read(["events.>"], 0, 1),
        engine.stats(),
        engine.register("k", b"", 0),
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert world.clock.monotonic() - begun < 10.0
    for outcome in outcomes:
        assert isinstance(outcome, EngineUnavailable | Unconfirmed), repr(outcome)
    link.mend()
    await eventually(lambda: _published(engine, "after"), "publishing works again")
    entries = await engine.read(["events.>"], 0, 10)
    assert b"lost" not in [entry.body for entry in entries]


@case("seam", wired=True)
async def closing_while_down_is_prompt(world: WiredWorld) -> None:
    """`close` returns within seconds although the server is away or does not answer, and ends what waits."""
    cut_off, cut = await world.linked()
    unheard, stalled = await world.linked()
    await cut_off.declare([group(world)])
    pulls = [asyncio.create_task(engine.pull("g", 1, 60.0)) for engine in (cut_off, unheard)]
    await world.wait(world.moment)
    cut.cut()
    stalled.stall()
    begun = world.clock.monotonic()
    await asyncio.gather(cut_off.close(), unheard.close())
    assert world.clock.monotonic() - begun < 10.0
    for pull in pulls:
        with raising(Closed, EngineUnavailable):
            await pull


@case("seam", wired=True)
async def a_lost_group_is_made_again(world: WiredWorld) -> None:
    """What the server keeps for a group is removed behind our back: it is made again, and what was not handled
    comes."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "handled")
    await finish(engine, [await take_one(engine, "g")])
    await world.lose_group("g")
    await publish(other, "new")
    seen: list[str] = []

    async def arrived() -> bool:
        got = await engine.pull("g", 10, 5.0)
        await finish(engine, got)
        seen.extend(texts(got))
        return "new" in seen

    await eventually(arrived, "the group goes on")
    while again := await glance(world, engine, "g"):
        await finish(engine, again)
        seen.extend(texts(again))
    assert set(seen) <= {"handled", "new"}
    assert (await engine.stats()).groups["g"].waiting == 0


@case("seam", wired=True)
async def a_late_word_ends_no_other_work(world: WiredWorld) -> None:
    """A worker that was cut off beyond its lease says `Done` when it is back: the one who has the message by then
    keeps it, and his word counts."""
    slow, link = await world.linked()
    other = await world.engine()
    await slow.declare([group(world)])
    await publish(slow, "a")
    stale = await take_one(slow, "g")
    link.cut()
    held = await take_one(other, "g")
    assert held.entry == stale.entry
    link.mend()
    await slow.settle([Done(stale)])
    await world.crash(other)
    again = await take_one(await world.engine(), "g")
    assert again.entry == stale.entry


@case("seam")
async def a_full_hand_of_the_dead_harms_nobody(world: World) -> None:
    """A worker that dies with many messages in its hands, again and again, burns no attempt of any of them."""
    keeper = await world.engine()
    await keeper.declare([group(world)])
    sent = [str(number) for number in range(30)]
    await publish(keeper, *sent)
    for _ in range(3):
        doomed = await world.engine()
        await take(doomed, "g", len(sent))
        await world.crash(doomed)
        await world.wait(1.2 * world.lease)
    got = await take(keeper, "g", len(sent))
    assert sorted(texts(got), key=int) == sent
    assert {delivery.attempts for delivery in got} == {0}
    assert {delivery.deliveries for delivery in got} == {4}
    await finish(keeper, got)
    assert await keeper.dead_letters() == []


@case("seam", wired=True)
async def settling_waits_for_the_server(world: WiredWorld) -> None:
    """`settle` during a short cut waits and is carried out: nothing that was said to be done comes again."""
    engine, link = await world.linked()
    other = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a", "b")
    got = await take(engine, "g", 2)
    await engine.extend(got)
    link.cut()
    settling = asyncio.create_task(engine.settle([Done(delivery) for delivery in got]))
    await asyncio.sleep(0.05)
    link.mend()
    await settling
    await world.wait(1.5 * world.lease)
    await nothing(world, other, "g")


@case("seam", wired=True)
async def shared_state_survives_lost_wires(world: WiredWorld) -> None:
    """Writers of shared state whose wires break again and again, and who look before they repeat, lose no write and
    make none twice."""
    linked = [await world.linked() for _ in range(2)]

    async def sign(engine: Engine, name: str) -> None:
        for number in range(20):
            await _sign(engine, f"{name}{number}")

    async def disturb() -> None:
        while True:
            await world.wait(0.03)
            for _, link in linked:
                link.drop()

    disturbing = asyncio.create_task(disturb())
    try:
        await asyncio.gather(*(sign(engine, name) for (engine, _), name in zip(linked, "ab", strict=True)))
    finally:
        disturbing.cancel()
    record = await (await world.engine()).recall("list")
    assert record is not None
    assert sorted(record.value.split()) == sorted(f"{name}{n}".encode() for name in "ab" for n in range(20))


async def _sign(engine: Engine, name: str) -> None:
    """Add the name to the list, once."""
    while True:
        record = await engine.recall("list")
        value, revision = (b"", 0) if record is None else (record.value, record.revision)
        if name.encode() in value.split():
            return
        with contextlib.suppress(Conflict, Unconfirmed, EngineUnavailable):
            await engine.register("list", value + b" " + name.encode(), revision)


async def _echo(subject: str, body: bytes, headers: Headers) -> Reply:
    return Reply(body, {})


async def _at_least(things: dict[str, int] | set[str], count: int) -> bool:
    return len(things) >= count


async def _published(engine: Engine, text: str) -> bool:
    try:
        await publish(engine, text)
    except EngineUnavailable:
        return False
    return True


async def _until_heard(speaker: Engine, signals: AsyncIterator[Signal | Lagged]) -> None:
    """The listener is told that it missed something, and then hears again."""
    assert await anext(signals) == Lagged(None)
    await _until_reached(speaker, heard(signals))


async def _until_reached(speaker: Engine, listening: Awaitable[object]) -> None:
    hearing = asyncio.ensure_future(listening)

    async def again() -> bool:
        await speaker.broadcast("live.news", b"again", {})
        await asyncio.sleep(0.02)
        return hearing.done()

    try:
        await eventually(again, "a listener hears again")
    finally:
        hearing.cancel()


async def _until_answered(asker: Engine) -> None:
    async def answered() -> bool:
        try:
            return (await asker.request("ask.me", b"x", {}, 1.0)).body == b"x"
        except RequestError:
            return False

    await eventually(answered, "a responder answers again")
