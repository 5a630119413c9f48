"""Replay: one group gets old events again, and only that one."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncSession

from tidings import Message
from tidings.engine import Claim, Dead, Group, Release, RetryAfter
from tidings.errors import Conflict
from tidings.replay import Span, count, replay

from .app import Ordered, application, handled, process, reached
from .case import case, eventually
from .database import database, write
from .steps import FAILURE, finish, group, message, nothing, publish, raising, take, take_one, texts
from .world import World


@case("seam")
async def replay_reaches_one_group(world: World) -> None:
    """What is replayed comes to that group again, with the replay's id and no attempts; no other group notices."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world, "a"), group(world, "b")])
    await publish(engine, "0", "1", "2")
    for name in ("a", "b"):
        await finish(engine, await take(engine, name, 3))
    entries = await engine.read(["events.>"], 0, 10)
    assert await other.replay("a", entries[:2], "again") == 2
    taken = await take(engine, "a", 2)
    assert sorted(texts(taken)) == ["0", "1"]
    assert [(d.replay, d.attempts, d.deliveries) for d in taken] == [("again", 0, 1)] * 2
    assert sorted(d.entry.position for d in taken) == [entry.position for entry in entries[:2]]
    assert {d.entry.time for d in taken} == {entry.time for entry in entries[:2]}
    await finish(engine, taken)
    await nothing(world, engine, "a", "b")


@case("seam")
async def an_entry_is_the_same_by_every_way(world: World) -> None:
    """Read, handed out, retried, dead, redriven or replayed, a message without headers is the same to the microsecond:
    its place and time are its identity, by which a database knows it."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "foreign")
    [entry] = await engine.read(["events.>"], 0, 10)
    first = await take_one(engine, "g")
    await engine.settle([RetryAfter(first, 0.0, FAILURE)])
    retried = await take_one(engine, "g")
    await engine.settle([Dead(retried, "handler_error", FAILURE)])
    [letter] = await engine.dead_letters("g")
    assert await engine.redrive([letter]) == 1
    redriven = await take_one(engine, "g")
    await finish(engine, [redriven])

    async def replayed() -> bool:  # in a cluster the word that it is done may still be on its way
        return await engine.replay("g", [entry], "again") == 1

    await eventually(replayed, "what is done is given again")
    again = await take_one(engine, "g")
    assert all(one.entry == entry for one in (first, retried, letter, redriven, again))


@case("seam")
async def replay_leaves_out_what_is_open(world: World) -> None:
    """What the group has still to handle, or has as a dead letter, is not given a second time."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "done", "dead", "delayed", "retried", "leased", "waiting")
    done, dead, delayed, retried, leased = await take(engine, "g", 5)
    await finish(engine, [done])
    await engine.settle(
        [
            Dead(dead, "handler_error", FAILURE),
            Release(delayed, 3 * world.lease),
            RetryAfter(retried, 3 * world.lease, FAILURE),
        ]
    )
    entries = await engine.read(["events.>"], 0, 10)

    async def replayed() -> bool:  # in a cluster the word that it is done may still be on its way
        return await engine.replay("g", entries, "again") == 1

    await eventually(replayed, "what is done is given again")
    found = {d.entry.body: d.replay for d in await take(engine, "g", 2)}
    assert found == {b"done": "again", b"waiting": ""}
    assert leased.replay == ""


@case("seam")
async def replay_repeated_gives_once(world: World) -> None:
    """Two that replay the same at once, and a third time while it waits: every entry comes once."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, *map(str, range(20)))
    await finish(engine, await take(engine, "g", 20))
    entries = await engine.read(["events.>"], 0, 100)
    await asyncio.gather(engine.replay("g", entries, "again"), other.replay("g", entries, "again"))
    assert await engine.replay("g", entries, "again") == 0
    taken = await take(engine, "g", 20)
    assert sorted(texts(taken), key=int) == [str(n) for n in range(20)]
    await nothing(world, engine, "g")


@case("seam")
async def replay_then_another(world: World) -> None:
    """What was replayed and handled can be replayed again, under another id."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "x")
    await finish(engine, [await take_one(engine, "g")])
    entries = await engine.read(["events.>"], 0, 10)
    for id in ("first", "second"):
        assert await engine.replay("g", entries, id) == 1
        again = await take_one(engine, "g")
        assert again.replay == id
        await finish(engine, [again])
    await nothing(world, engine, "g")


@case("seam")
async def replay_lives_on_in_retries_and_redrive(world: World) -> None:
    """A replayed message keeps its replay's id when it is retried, when it dies and when it is redriven."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "x")
    await finish(engine, [await take_one(engine, "g")])
    await engine.replay("g", await engine.read(["events.>"], 0, 10), "again")
    await engine.settle([RetryAfter(await take_one(engine, "g"), 0.0, FAILURE)])
    retried = await take_one(engine, "g")
    assert (retried.replay, retried.attempts) == ("again", 1)
    await engine.settle([Dead(retried, "handler_error", FAILURE)])
    [letter] = await engine.dead_letters("g")
    assert letter.replay == "again"
    assert await engine.redrive([letter]) == 1
    redriven = await take_one(engine, "g")
    assert (redriven.replay, redriven.attempts) == ("again", 0)
    await finish(engine, [redriven])
    await nothing(world, engine, "g")


@case("seam")
async def replay_of_what_a_group_never_had(world: World) -> None:
    """A group that began later gets what came before it, and `states` says that it waits."""
    engine = await world.engine()
    [early] = await publish(engine, "early")
    await engine.declare([Group("g", (Claim("events.>", since=early.position + 1),), lease=world.lease)])
    [entry] = await engine.read(["events.>"], 0, 10)
    assert await engine.replay("g", [entry], "again") == 1
    assert (await engine.states(entry))["g"].state == "waiting"
    taken = await take_one(engine, "g")
    assert (taken.entry.body, taken.replay) == (b"early", "again")
    await finish(engine, [taken])
    await nothing(world, engine, "g")


@case("seam")
async def replay_of_the_largest(world: World) -> None:
    """A message as large as one may be comes again with all its bytes and headers."""
    engine = await world.engine()
    await engine.declare([group(world)])
    body = b"x" * (engine.max_message - 2000)
    await engine.publish([message(body, headers={"ce-id": "large"})])
    await finish(engine, [await take_one(engine, "g")])
    await engine.replay("g", await engine.read(["events.>"], 0, 10), "again")
    again = await take_one(engine, "g")
    assert again.entry.body == body
    assert again.entry.headers["ce-id"] == "large"
    await finish(engine, [again])


@case("seam")
async def replay_needs_a_group(world: World) -> None:
    """A group that is not declared raises `Conflict`."""
    engine = await world.engine()
    await publish(engine, "x")
    entries = await engine.read(["events.>"], 0, 10)
    with raising(Conflict):
        await engine.replay("nobody", entries, "again")


@case("bus")
async def replay_runs_a_transaction_again(world: World) -> None:
    """A transactional handler that has handled an event runs again for a replay of it, once for each replay."""
    async with database() as db:
        bus, replays = application(world, sessions=db.sessions), list[str | None]()
        others: list[int] = []

        @bus.on(Ordered, group="pack")
        async def pack(order: Ordered, about: Message, session: AsyncSession) -> None:
            replays.append(about.replay)
            await write(session, order.number)

        @bus.on(Ordered, group="audit")
        async def audit(order: Ordered) -> None:
            others.append(order.number)

        async with process(world, bus) as running:
            engine = running.engine
            await bus.publish_many([Ordered(number=number) for number in range(3)])
            await handled(world, engine, "pack", "audit")
            second = (await engine.read(["events.>"], 0, 10))[1].position
            span = Span(first=second, subject="events.shop.*")
            assert await count(engine, "pack", span) == 2
            assert await replay(engine, "pack", span, "again") == 2
            await reached(world, lambda: replays.count("again") == 2, "they come again")
            await handled(world, engine, "pack", "audit")
        assert await db.rows() == [0, 1, 1, 2, 2]
        assert replays == [None] * 3 + ["again"] * 2
        assert sorted(others) == [0, 1, 2]
