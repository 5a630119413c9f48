"""Dead letters: never lost, never two, and what a person does to them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncSession

from tidings import Message
from tidings.deadletters import Selection, pages, restore, to_letter, to_line
from tidings.engine import Dead, DeadLetter, Engine, RetryAfter
from tidings.errors import Conflict, EngineError, TooLarge

from .app import Ordered, application, handled, letters, process
from .case import case, eventually
from .database import database, write
from .steps import FAILURE, finish, glance, group, message, nothing, publish, raising, take, take_one, texts
from .world import Link, WiredWorld, World

STEPS = 12
"""Turns of the event loop after which a connection is cut off, one after the other."""


@case("seam")
async def a_death_cut_off_leaves_one_letter(world: World) -> None:
    """A process that dies anywhere on the way between `Dead` and its end: the message is a dead letter or comes again,
    and dies then; in the end there is one letter for each, and nothing waits."""
    keeper = await world.engine()
    await keeper.declare([group(world)])
    bodies = [str(number) for number in range(STEPS)]
    await publish(keeper, *bodies)
    for turns in range(STEPS):
        doomed = await world.engine()
        dead = Dead(await take_one(doomed, "g"), "rejected", FAILURE)
        await _cut_off(world, doomed, doomed.settle([dead]), turns)

    async def all_dead() -> bool:
        for delivery in await keeper.pull("g", STEPS, 0.0):
            await keeper.settle([Dead(delivery, "rejected", FAILURE)])
        await world.wait(world.lease / 4)
        return len(await keeper.dead_letters("g")) == STEPS

    await eventually(all_dead, "each of them is a dead letter")
    await world.wait(1.5 * world.lease)
    await _bury_what_comes(keeper)
    found = await keeper.dead_letters("g")
    assert sorted(letter.entry.body.decode() for letter in found) == sorted(bodies)
    await nothing(world, keeper, "g")


@case("seam", wired=True)
async def a_dead_letter_is_stored_before_it_is_acknowledged(world: WiredWorld) -> None:
    """A process that dies when its dead letter is stored and it does not know: the letter is there; should the message
    come once more, dying again leaves that one letter; one redrive delivers it once."""
    keeper = await world.engine()
    await keeper.declare([group(world)])
    await publish(keeper, "a")
    doomed, link = await world.linked()
    delivery = await take_one(doomed, "g")
    await _without_answer(world, doomed, link, doomed.settle([Dead(delivery, "rejected", FAILURE)]))

    assert [letter.entry.body for letter in await keeper.dead_letters("g")] == [b"a"]
    await world.wait(1.2 * world.lease)
    for again in await glance(world, keeper, "g"):
        assert again.deliveries == 2
        await keeper.settle([Dead(again, "rejected", FAILURE)])
    found = await keeper.dead_letters("g")
    assert len(found) == 1
    assert await keeper.redrive(found) == 1
    await finish(keeper, [await take_one(keeper, "g")])
    await nothing(world, keeper, "g")


@case("seam")
async def a_redrive_cut_off_moves_each_once(world: World) -> None:
    """A process that dies anywhere in a redrive: each letter is still there or with its group, never both; the same
    redrive by somebody else moves the rest, and the group gets each once."""
    keeper = await world.engine()
    await keeper.declare([group(world)])
    for turns in range(STEPS):
        found = await _died(keeper, *(f"{turns}-{number}" for number in range(5)))
        doomed = await world.engine()
        await _cut_off(world, doomed, doomed.redrive(found), turns)
        await keeper.redrive(found)
        assert await keeper.dead_letters("g") == []
        got = await take(keeper, "g", 5)
        assert sorted(texts(got)) == sorted(f"{turns}-{number}" for number in range(5))
        await finish(keeper, got)
    await nothing(world, keeper, "g")


@case("seam", wired=True)
async def a_redrive_without_an_answer_moves_each_once(world: WiredWorld) -> None:
    """A process that dies when its redrive is done and it does not know: whoever repeats it moves nothing twice."""
    keeper = await world.engine()
    await keeper.declare([group(world)])
    found = await _died(keeper, "a", "b", "c")
    doomed, link = await world.linked()
    await _without_answer(world, doomed, link, doomed.redrive(found))

    assert await keeper.redrive(found) == 0
    assert await keeper.dead_letters("g") == []
    got = await take(keeper, "g", 3)
    assert texts(got) == ["a", "b", "c"]
    await finish(keeper, got)
    await nothing(world, keeper, "g")


@case("seam", wired=True)
async def a_redrive_outlives_the_server(world: WiredWorld) -> None:
    """What keeps the messages is killed somewhere in a redrive: it ends as if nothing had been, or says that it does
    not know and is repeated. No letter is left, each message is with the group, and none is counted twice."""
    keeper = await world.engine()
    await keeper.declare([group(world)])
    for turns in range(0, STEPS, 3):
        found = await _died(keeper, *(f"{turns}-{number}" for number in range(40)))
        await keeper.stop_pulling("g")
        redrive = asyncio.ensure_future(keeper.redrive(found))
        for _ in range(turns):
            await asyncio.sleep(0)
        await world.kill()
        await world.start()
        moved = 0
        with suppress(EngineError):
            moved = await redrive
        assert moved + await keeper.redrive(found) <= len(found)
        assert await keeper.dead_letters("g") == []
        missing = {letter.entry.body for letter in found}
        while missing:
            got = await take(keeper, "g", 1)
            missing -= {delivery.entry.body for delivery in got}
            await finish(keeper, got)


@case("seam")
async def an_amended_letter_keeps_its_original(world: World) -> None:
    """An amended body is what a redrive delivers, at the same place with the same headers; the first one stays with
    the letter, over a second change and a second death."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world), group(world, "other")])
    await engine.publish([message(b"\xff first", headers={"ce-id": "7"})])
    await engine.settle([Dead(await take_one(engine, "g"), "invalid", FAILURE)])
    [letter] = await engine.dead_letters("g")
    assert await engine.amend(letter, b"second")

    [second] = await other.dead_letters("g")
    assert second == replace(letter, entry=replace(letter.entry, body=b"second"), original=b"\xff first")
    assert await other.amend(second, b"")
    [third] = await engine.dead_letters("g")
    assert (third.entry.body, third.original) == (b"", b"\xff first")
    assert await engine.redrive([third]) == 1

    delivery = await take_one(engine, "g")
    assert delivery.entry == replace(letter.entry, body=b"")
    await engine.settle([RetryAfter(delivery, 0.0, FAILURE)])
    await other.settle([Dead(await take_one(other, "g"), "rejected", FAILURE)])
    [again] = await engine.dead_letters("g")
    assert (again.entry.body, again.original, again.reason) == (b"", b"\xff first", "rejected")
    assert (await take_one(engine, "other")).entry.body == b"\xff first"
    assert [entry.body for entry in await engine.read(["events.>"], 0, 10)] == [b"\xff first"]


@case("seam")
async def amending_never_overwrites(world: World) -> None:
    """Who amends a letter that somebody else has amended, moved, dropped or seen die again changes nothing."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    a, b, c = await _died(engine, "a", "b", "c")
    assert await other.amend(a, b"theirs")
    assert not await engine.amend(a, b"mine")
    assert await other.discard([b]) == 1
    assert not await engine.amend(b, b"mine")
    assert await other.redrive([c]) == 1
    assert not await engine.amend(c, b"mine")
    await world.wait(world.moment)
    await engine.settle([Dead(await take_one(engine, "g"), "rejected", FAILURE)])
    assert not await engine.amend(c, b"mine")
    found = await engine.dead_letters("g")
    assert [letter.entry.body for letter in found] == [b"theirs", b"c"]
    with raising(TooLarge):
        await engine.amend(found[1], b"x" * (engine.max_message + 1))
    # Whoever moves what was amended since they looked moves what is there now.
    assert await engine.redrive([a]) == 1
    assert (await take_one(engine, "g")).entry.body == b"theirs"


@case("seam")
async def what_was_dropped_can_be_stored_again(world: World) -> None:
    """Letters that were read and dropped are stored again as they were, once, and redriven like any other; nothing is
    stored over one that is there, nor for a group that is not."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    found = await _died(engine, "a", "b", "c")
    assert await engine.amend(found[2], b"edited")
    found = await engine.dead_letters("g")
    assert await engine.discard(found[1:]) == 2
    assert await other.bury(found) == 2
    assert await engine.bury(found) == 0
    assert await engine.dead_letters("g") == found
    with raising(Conflict):
        await engine.bury([replace(found[0], group="nobody")])

    assert await engine.redrive(found) == 3
    got = await take(engine, "g", 3)
    assert texts(got) == ["a", "b", "edited"]
    await finish(engine, got)
    await nothing(world, engine, "g")


@case("seam")
async def an_export_comes_back_byte_for_byte(world: World) -> None:
    """Written as lines of JSON and read back, letters are the same, whatever bytes they have; storing them twice
    changes nothing, and neither another log's nor what the group still has to handle is taken."""
    engine = await world.engine()
    await engine.declare([group(world)])
    bodies = [b"", b"\xff\x00\xfe", '{"ä": "\u2028"}'.encode(), bytes(range(256)), b'{"n": 1}']
    await engine.publish([message(body, headers={"ce-id": "x", "odd": "a%20b"}) for body in bodies])
    await engine.settle([Dead(delivery, "invalid", FAILURE) for delivery in await take(engine, "g", 5)])
    found = await engine.dead_letters("g")
    lines = [to_line(letter) for letter in found]
    assert [to_letter(line) for line in lines] == found
    assert await engine.discard(found[:4]) == 4

    read = [to_letter(line) for line in lines]
    first, second = await restore(engine, read), await restore(engine, read)
    assert (first.stored, first.there, first.refused) == (4, 1, ())
    assert (second.stored, second.there, second.refused) == (0, 5, ())
    assert await engine.dead_letters("g") == found
    strange = replace(found[0], entry=replace(found[0].entry, body=b"another"))
    assert await engine.redrive(found[:1]) == 1
    late = await restore(engine, [found[0], strange, replace(found[1], group="nobody")])
    assert (late.stored, len(late.refused)) == (0, 3)
    assert len(await engine.dead_letters("g")) == 4


@case("seam")
async def pages_of_many_while_they_are_moved(world: World) -> None:
    """Whoever goes through many dead letters page by page and moves each page meets every one once, also those that
    die meanwhile behind the page."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world), group(world, "two")])
    await publish(engine, *map(str, range(300)))
    one, two = await _all_of(engine, "g", 300), await _all_of(engine, "two", 300)
    await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in [*one[:250], *two[:100]]])
    seen: list[str] = []
    after = 0
    while page := await other.dead_letters(None, after, 60):
        assert await other.redrive(page) == len(page)
        seen += [letter.key for letter in page]
        if not after:
            await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in one[250:]])
        after = page[-1].entry.position
    assert len(seen) == len(set(seen)) == 400
    assert [page async for page in pages(engine, Selection())] == []


@case("bus")
async def a_redrive_delivers_what_was_amended(world: World) -> None:
    """A handler gets the amended data under the id that the message always had, as a first attempt."""
    runs: list[tuple[str, int, int]] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered, about: Message) -> None:
        runs.append((about.id, order.number, about.attempt))
        if order.number < 0:
            raise ValueError("less than nothing")

    async with process(world, bus) as running:
        receipt = await bus.publish(Ordered(number=-1))
        [letter] = await letters(world, running.engine, "pack")
        assert await running.engine.amend(letter, b'{"number": 1}')
        assert await running.engine.redrive(await running.engine.dead_letters("pack")) == 1
        await handled(world, running.engine, "pack")
        assert await running.engine.dead_letters("pack") == []
    assert [run for run in runs if run[1] > 0] == [(receipt.id, 1, 1)]
    assert {run[0] for run in runs} == {receipt.id}


@case("bus")
async def the_inbox_lets_a_redrive_through(world: World) -> None:
    """A message that never succeeded left no mark in the database: after its redrive it is handled, and its row is
    there once, also when a redrive comes for what was handled since."""
    async with database() as db:
        mended = False
        bus = application(world, sessions=db.sessions)

        @bus.on(Ordered, group="pack")
        async def pack(order: Ordered, session: AsyncSession) -> None:
            await write(session, order.number)
            if not mended:
                raise ValueError("not yet")

        async with process(world, bus) as running:
            await bus.publish(Ordered(number=1))
            [letter] = await letters(world, running.engine, "pack")
            assert await db.rows() == []
            mended = True
            assert await running.engine.redrive([letter]) == 1
            await handled(world, running.engine, "pack")
            assert await db.rows() == [1]
            assert await running.engine.bury([letter]) == 1
            assert await running.engine.redrive([letter]) == 1
            await handled(world, running.engine, "pack")
            assert await running.engine.dead_letters() == []
        assert await db.rows() == [1]


async def _died(engine: Engine, *bodies: str) -> list[DeadLetter]:
    """Publish and let die in the group `g`; the letters in order."""
    await publish(engine, *bodies)
    deliveries = await take(engine, "g", len(bodies))
    await engine.settle([Dead(delivery, "handler_error", FAILURE) for delivery in deliveries])
    return await engine.dead_letters("g", 0, len(bodies))


async def _all_of(engine: Engine, group: str, count: int) -> list[Any]:
    return sorted(await take(engine, group, count), key=lambda delivery: delivery.entry.position)


async def _bury_what_comes(engine: Engine) -> None:
    await engine.settle([Dead(d, "rejected", FAILURE) for d in await engine.pull("g", STEPS, 0.0)])


async def _cut_off(world: World, engine: Engine, call: Coroutine[Any, Any, Any], turns: int) -> None:
    """Begin the call, and let its process die so many turns later."""
    task = asyncio.create_task(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    await world.crash(engine)
    task.cancel()
    with suppress(asyncio.CancelledError, EngineError):
        await task


async def _without_answer(world: World, engine: Engine, link: Link, call: Coroutine[Any, Any, Any]) -> None:
    """Begin the call, lose the answer to its write, and let its process die when that is lost."""
    link.lose_receipt()
    task = asyncio.create_task(call)

    async def lost() -> bool:
        return link.lost > 0

    await eventually(lost, "the answer is lost")
    await world.crash(engine)
    task.cancel()
    with suppress(asyncio.CancelledError, EngineError):
        await task
