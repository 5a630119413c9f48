"""Many publishers of one process at the same time: what travels together fails alone."""

from __future__ import annotations

import asyncio

from tidings.engine import Engine, Outgoing, Stored
from tidings.errors import Closed, InvalidMessage, TooLarge, Unconfirmed

from .case import case, eventually
from .steps import message
from .world import WiredWorld, World

MANY = 120


@case("seam")
async def callers_at_once(world: World) -> None:
    """Each of many callers at once gets the places of its own messages, and its messages keep their order."""
    engine = await world.engine()
    placed: dict[str, int] = {}

    async def caller(name: int) -> None:
        for number in range(5):
            batch = [message(f"{name}-{number}-{part}") for part in range(1 + name % 3)]
            for outgoing, stored in zip(batch, await engine.publish(batch), strict=True):
                placed[outgoing.body.decode()] = stored.position

    await asyncio.gather(*(caller(name) for name in range(40)))
    entries = await engine.read(["events.>"], 0, 1000)
    assert {entry.body.decode(): entry.position for entry in entries} == placed
    for name in range(40):
        own = [place for text, place in placed.items() if text.startswith(f"{name}-")]
        assert own == sorted(own)


@case("seam")
async def many_in_one_call_keep_their_order(world: World) -> None:
    """A call with more messages than any engine sends at once stores them in their order, whoever else publishes."""
    engine = await world.engine()
    many = [message(str(number), subject="events.many") for number in range(2500)]
    others = [message(str(number), subject="events.other") for number in range(MANY)]
    stored, *rest = await asyncio.gather(engine.publish(many), *(engine.publish([other]) for other in others))
    positions = [place.position for place in stored]
    assert positions == sorted(set(positions))
    assert not set(positions) & {place.position for [place] in rest}
    entries = await engine.read(["events.many"], 0, 3000)
    assert [entry.body for entry in entries] == [outgoing.body for outgoing in many]


@case("seam")
async def known_ids_among_many(world: World) -> None:
    """Ids that are known, or come twice, among many callers at once: stored once, and each is told its place."""
    engine = await world.engine()
    batch = [message(str(number)) for number in range(MANY)]
    known = await engine.publish(batch[30:33])
    twice = [*batch, batch[50], batch[90], batch[90]]
    stored = [place for [place] in await asyncio.gather(*(engine.publish([outgoing]) for outgoing in twice))]

    assert [place.position for place in stored[30:33]] == [place.position for place in known]
    assert all(place.duplicate for place in stored[30:33])
    assert stored[MANY].position == stored[50].position
    assert stored[MANY + 1].position == stored[MANY + 2].position == stored[90].position
    entries = {entry.position: entry.body for entry in await engine.read(["events.>"], 0, 1000)}
    assert len(entries) == MANY
    assert [entries[place.position] for place in stored] == [outgoing.body for outgoing in twice]


@case("seam")
async def bad_messages_among_many(world: World) -> None:
    """A message that is refused, or whose caller goes away, harms none of those that are published beside it."""
    engine = await world.engine()
    good = [message(f"good {number}") for number in range(MANY)]
    gone = [message(f"gone {number}") for number in range(MANY)]
    calls: list[asyncio.Task[list[Stored]]] = []
    leaving: list[asyncio.Task[list[Stored]]] = []
    for one, other in zip(good, gone, strict=True):
        calls.append(asyncio.create_task(engine.publish([one])))
        leaving.append(asyncio.create_task(engine.publish([other])))
    bad = [message("x" * (engine.max_message + 1)), message(subject="events.*"), message(headers={"Nats-TTL": "1s"})]
    refused = await asyncio.gather(*(engine.publish([each]) for each in bad), return_exceptions=True)
    for number, task in enumerate(leaving):
        if number % 2:
            await asyncio.sleep(0)
        task.cancel()
    stored = [place for [place] in await asyncio.gather(*calls)]

    assert [type(error) for error in refused] == [TooLarge, InvalidMessage, InvalidMessage]
    again = [place for [place] in await asyncio.gather(*(engine.publish([outgoing]) for outgoing in gone))]
    entries = {entry.position: entry.body for entry in await engine.read(["events.>"], 0, 1000)}
    assert [entries[place.position] for place in stored] == [outgoing.body for outgoing in good]
    assert [entries[place.position] for place in again] == [outgoing.body for outgoing in gone]
    assert len(entries) == 2 * MANY


@case("seam")
async def closing_ends_the_calls_of_many(world: World) -> None:
    """`close` in the middle of many calls ends each of them: with its place, or with an error; none hangs."""
    engine = await world.engine()
    batch = [message(str(number)) for number in range(3 * MANY)]
    calls = [asyncio.create_task(engine.publish([outgoing])) for outgoing in batch]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await engine.close()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, list | Closed | Unconfirmed) for result in ended)
    entries = {entry.body for entry in await (await world.engine()).read(["events.>"], 0, 1000)}
    told = {outgoing.body for outgoing, result in zip(batch, ended, strict=True) if isinstance(result, list)}
    assert told <= entries


@case("seam", wired=True)
async def a_lost_answer_to_many(world: WiredWorld) -> None:
    """When answers to many callers at once are lost, each message is confirmed all the same, and stored once."""
    engine, link = await world.linked(patience=4.0)
    batch = [message(str(number)) for number in range(MANY)]
    for _ in range(3):
        link.lose_receipt()
    await _all_once(engine, batch)
    assert link.lost >= 1


@case("seam", wired=True)
async def a_cut_among_many(world: WiredWorld) -> None:
    """A wire that breaks while many publish at once, wherever in a message: each is confirmed, and stored once."""
    engine, link = await world.linked()
    for turn, size in enumerate((1, 900, 6_007, 25_013)):
        link.drop_after(size)
        await _all_once(engine, [message(f"{turn}-{n}" + "x" * 100, subject=f"events.t{turn}") for n in range(MANY)])


@case("seam", wired=True)
async def many_survive_kill_9(world: WiredWorld) -> None:
    """What was confirmed to any of many callers is there after `kill -9` at any moment, and the rest is stored once
    when they try again."""
    engine = await world.engine(patience=40.0)
    confirmed: dict[str, int] = {}

    async def caller(name: int) -> None:
        for number in range(25):
            [stored] = await engine.publish([message(f"{name}-{number}")])
            confirmed[f"{name}-{number}"] = stored.position

    callers = [asyncio.create_task(caller(name)) for name in range(MANY // 3)]
    for least in (100, 400):
        await eventually(lambda least=least: _at_least(confirmed, least), "publishing goes on")  # type: ignore[misc]
        before = dict(confirmed)
        await world.kill()
        await world.start()
        entries = await (await world.engine()).read(["events.>"], 0, 3000)
        assert before.items() <= {entry.body.decode(): entry.position for entry in entries}.items()
    await asyncio.gather(*callers)
    entries = await engine.read(["events.>"], 0, 3000)
    assert {entry.body.decode(): entry.position for entry in entries} == confirmed
    assert len(entries) == len(confirmed)


@case("seam", wired=True)
async def a_lost_leader_leaves_each_call_in_order(world: WiredWorld) -> None:
    """`kill -9` to the server that leads, while callers publish several messages at a time: those of each call are
    stored once and in their order."""
    engine = await world.engine(patience=40.0)
    stored: list[list[int]] = []

    async def caller(name: int) -> None:
        for number in range(25):
            batch = [message(f"{name}-{number}-{part}") for part in range((2, 5, 12, 40)[name])]
            stored.append([place.position for place in await engine.publish(batch)])

    callers = [asyncio.create_task(caller(name)) for name in range(4)]
    for least in (10, 50):
        await eventually(lambda least=least: _reached(stored, least), "publishing goes on")  # type: ignore[misc]
        await world.fail_over()
    await asyncio.gather(*callers)
    assert [places for places in stored if places != sorted(set(places))] == []
    assert len(await engine.read(["events.>"], 0, 3000)) == sum(len(places) for places in stored) == 25 * 59


async def _reached(stored: list[list[int]], least: int) -> bool:
    return len(stored) >= least


async def _at_least(found: dict[str, int], count: int) -> bool:
    return len(found) >= count


async def _all_once(engine: Engine, batch: list[Outgoing]) -> None:
    """Publish them all at once: each where it says, and nothing twice."""
    stored = await asyncio.gather(*(engine.publish([outgoing]) for outgoing in batch))
    entries = await engine.read([batch[0].subject], 0, 2 * len(batch))
    bodies = {entry.position: entry.body for entry in entries}
    assert len(entries) == len(batch)
    assert [bodies[place.position] for [place] in stored] == [outgoing.body for outgoing in batch]
