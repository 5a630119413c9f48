"""What a group wants: claims, positions, pausing and forgetting."""

from __future__ import annotations

import asyncio

from tidings.engine import Claim, Dead, Group, Skip
from tidings.errors import Conflict

from .case import case
from .steps import FAILURE, finish, group, nothing, publish, raising, take, take_one, texts
from .world import World


@case("seam")
async def new_group_gets_what_is_stored(world: World) -> None:
    """A new group is handed what is stored from its claim's `since` on, and what comes later."""
    engine = await world.engine()
    stored = await publish(engine, *"abcd")
    await engine.declare(
        [
            Group("all", (Claim("events.>"),), lease=world.lease),
            Group("some", (Claim("events.>", since=stored[2].position),), lease=world.lease),
            Group("late", (Claim("events.>", since=stored[3].position + 1),), lease=world.lease),
        ]
    )
    await publish(engine, "e")
    for name, expected in {"all": "abcde", "some": "cde", "late": "e"}.items():
        assert "".join(texts(await take(engine, name, len(expected)))) == expected
    await nothing(world, engine, "all", "some", "late")


@case("seam")
async def skipped_ranges_are_left_out(world: World) -> None:
    """What another group had claimed on some of the subjects is skipped, for exactly those subjects and positions."""
    engine = await world.engine()
    await publish(engine, "1", subject="events.a")
    first = (await publish(engine, "2", subject="events.a"))[0].position
    await publish(engine, "3", subject="events.b")
    last = (await publish(engine, "4", subject="events.a"))[0].position
    await publish(engine, "5", subject="events.a")
    claim = Claim("events.>", skip=(Skip("events.a", since=first, upto=last),))
    await engine.declare([Group("g", (claim,), lease=world.lease)])
    assert texts(await take(engine, "g", 3)) == ["1", "3", "5"]
    await nothing(world, engine, "g")


@case("seam")
async def claim_added_to_a_live_group(world: World) -> None:
    """A claim that is new to a group hands over what is stored from its `since` on, and repeats nothing it had."""
    engine = await world.engine()
    await engine.declare([group(world, "g", "events.a")])
    await publish(engine, "a1", subject="events.a")
    await publish(engine, "b1", subject="events.b")
    [b2] = await publish(engine, "b2", subject="events.b")
    await finish(engine, [await take_one(engine, "g")])

    added = Claim("events.b", since=b2.position)
    await engine.declare([Group("g", (Claim("events.a"), added), lease=world.lease)])
    await publish(engine, "a2", subject="events.a")
    await publish(engine, "b3", subject="events.b")
    got = await take(engine, "g", 3)
    assert sorted(texts(got)) == ["a2", "b2", "b3"]
    await finish(engine, got)
    await nothing(world, engine, "g")


@case("seam")
async def declaring_again_takes_nothing_away(world: World) -> None:
    """Declaring less, again or from ten processes at once leaves a group its claims and its place."""
    engines = [await world.engine() for _ in range(5)]
    wide, narrow = group(world, "g", "events.a", "events.b"), group(world, "g", "events.a")
    await asyncio.gather(*(engine.declare([wide]) for engine in engines))
    engine = engines[0]
    await publish(engine, "a1", subject="events.a")
    await finish(engine, [await take_one(engine, "g")])
    await asyncio.gather(*(each.declare([wide]) for each in engines), *(each.declare([narrow]) for each in engines))
    await engine.declare([narrow])
    await publish(engine, "b1", subject="events.b")
    await finish(engine, [delivery := await take_one(engine, "g")])
    assert delivery.entry.body == b"b1"
    await nothing(world, engine, "g")


@case("seam")
async def paused_group_waits(world: World) -> None:
    """A paused group gets nothing, with a reader waiting or not, and all of it when it is resumed."""
    engine, admin = await world.engine(), await world.engine()
    await engine.declare([group(world), group(world, "other")])
    pull = asyncio.create_task(engine.pull("g", 10, 1000 * world.lease))
    await world.wait(world.moment)
    await admin.declare([group(world, paused=True)])
    await publish(admin, "a", "b")
    await nothing(world, admin, "g")
    assert not pull.done()
    assert texts(await take(engine, "other", 2)) == ["a", "b"]

    await admin.declare([group(world)])
    got = await pull
    got += await take(engine, "g", 2 - len(got)) if len(got) < 2 else []
    assert texts(got) == ["a", "b"]


@case("seam")
async def forgotten_group_is_gone(world: World) -> None:
    """`forget` removes a group with its dead letters; declared again it begins anew. Others notice nothing."""
    engine = await world.engine()
    await engine.declare([group(world), group(world, "other")])
    await publish(engine, "a", "b")
    await engine.settle([Dead(await take_one(engine, "g"), "rejected", FAILURE)])
    await engine.forget("g")
    await engine.forget("g")
    await engine.forget("never-declared")

    with raising(Conflict):
        await engine.pull("g", 1, 0.0)
    assert await engine.dead_letters() == []
    assert set((await engine.stats()).groups) == {"other"}
    assert texts(await take(engine, "other", 2)) == ["a", "b"]
    await engine.declare([group(world)])
    got = await take(engine, "g", 2)
    assert [(d.entry.body, d.attempts) for d in got] == [(b"a", 0), (b"b", 0)]


@case("seam")
async def unknown_group_is_refused(world: World) -> None:
    """`pull` of a group that nobody declared raises `Conflict`."""
    engine = await world.engine()
    with raising(Conflict):
        await engine.pull("nobody", 1, 0.0)
