"""Looking: the log, states, counts, and the shared records."""

from __future__ import annotations

import asyncio

from tidings.engine import Claim, Dead, Engine, Group, Release, RetryAfter
from tidings.errors import Conflict

from .case import case, eventually
from .steps import FAILURE, finish, group, message, nothing, publish, raising, take, take_one
from .world import World


@case("seam")
async def read_pages(world: World) -> None:
    """`read` gives what matches behind a position, oldest first, and pages over a growing log see each entry once."""
    engine = await world.engine()
    for number in range(25):
        await publish(engine, str(number), subject=f"events.{'ab'[number % 2]}.x")
    seen: list[str] = []
    after = 0
    while page := await engine.read(["events.a.>"], after, 4):
        assert len(page) <= 4
        seen += [entry.body.decode() for entry in page]
        after = page[-1].position
        if len(seen) == 8:
            await publish(engine, "25", "26", subject="events.a.x")
    assert seen == [str(n) for n in range(0, 25, 2)] + ["25", "26"]
    both = await engine.read(["events.a.x", "events.b.>", "events.b.x"], 0, 100)
    assert [e.body.decode() for e in both] == [str(n) for n in range(27)]
    assert await engine.read(["events.c"], 0, 100) == []


@case("seam")
async def read_wakes_early(world: World) -> None:
    """A waiting `read` returns when an entry that matches comes, passes over others, and ends empty at its time."""
    reader, writer = await world.engine(), await world.engine()
    [old] = await publish(writer, "old")
    waiting = asyncio.create_task(reader.read(["events.a"], old.position, 10, wait=300.0))
    await world.wait(world.moment)
    await publish(writer, "other", subject="events.b")
    await world.wait(world.moment)
    assert not waiting.done()
    await publish(writer, "new")
    assert [entry.body for entry in await waiting] == [b"new"]

    waiting = asyncio.create_task(reader.read(["events.c"], 0, 10, wait=4 * world.moment))
    await world.wait(2 * world.moment)
    assert not waiting.done()
    await world.wait(3 * world.moment)
    assert await waiting == []


@case("seam")
async def read_changes_nothing(world: World) -> None:
    """Reading takes nothing from any group, before, during or after its handling."""
    engine, reader = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a", "b")
    assert len(await reader.read(["events.>"], 0, 10)) == 2
    first = await take_one(engine, "g")
    assert len(await reader.read(["events.>"], 0, 10)) == 2
    await finish(engine, [first])
    second = await take_one(engine, "g")
    assert (first.entry.body, second.entry.body) == (b"a", b"b")
    assert (second.deliveries, second.attempts) == (1, 0)
    await finish(engine, [second])
    assert [entry.body for entry in await reader.read(["events.>"], 0, 10)] == [b"a", b"b"]


@case("seam")
async def subjects_are_counted(world: World) -> None:
    """`subjects` gives each stored subject that a filter matches with the number of its entries."""
    engine = await world.engine()
    for subject in ("events.a", "events.b.c", "events.a", "events.b.d"):
        await publish(engine, "{}", subject=subject)
    assert await engine.subjects("events.>") == {"events.a": 2, "events.b.c": 1, "events.b.d": 1}
    assert await engine.subjects("events.b.*") == {"events.b.c": 1, "events.b.d": 1}
    assert await engine.subjects("events.nothing") == {}


@case("seam")
async def states_tell_what_happens(world: World) -> None:
    """`states` says for each group whether an entry waits, is leased, is retried, done, dead or not wanted."""
    engine, other = await world.engine(), await world.engine()
    names = ("waiting", "leased", "retrying", "done", "dead")
    await engine.declare([group(world, name) for name in names])
    await engine.declare([Group("unwanted", (Claim("events.other"),), lease=world.lease)])
    await publish(engine, "{}")
    held = {name: await take_one(engine, name) for name in names[1:]}
    await engine.settle([RetryAfter(held["retrying"], 5 * world.lease, FAILURE)])
    await engine.settle([Dead(held["dead"], "rejected", FAILURE)])
    await finish(engine, [held["done"]])
    [entry] = await other.read(["events.>"], 0, 1)

    async def told() -> bool:
        states = {name: state.state for name, state in (await other.states(entry)).items()}
        return states == {name: name for name in names} | {"unwanted": "not wanted"}

    await eventually(told, "states agree with what was done")


@case("seam")
async def stats_add_up(world: World) -> None:
    """Counts agree with what was done: messages, positions, and for each group waiting, leased, delayed and dead."""
    engine, other = await world.engine(), await world.engine()
    empty = await engine.stats()
    assert (empty.messages, empty.last, empty.groups) == (0, 0, {})
    await engine.declare([group(world), group(world, "untouched"), group(world, "none", "events.b")])
    stored = await publish(engine, *"abcdefgh")
    done, dead, later, released, *held = await take(engine, "g", 6)
    await finish(engine, [done])
    await engine.settle([Dead(dead, "rejected", FAILURE), RetryAfter(later, 50 * world.lease, FAILURE)])
    await engine.settle([Release(released, 50 * world.lease)])
    await engine.extend(held)

    async def counted() -> bool:
        stats = await other.stats()
        g, untouched, none = (stats.groups[name] for name in ("g", "untouched", "none"))
        return (
            (stats.messages, stats.first, stats.last) == (8, stored[0].position, stored[-1].position)
            and stats.bytes >= 8
            and (g.waiting + g.leased + g.delayed, g.dead) == (6, 1)
            and (untouched.waiting, untouched.leased, untouched.delayed, untouched.dead) == (8, 0, 0, 0)
            and (none.waiting, none.leased, none.delayed, none.dead) == (0, 0, 0, 0)
        )

    await eventually(counted, "counts agree with what was done")


@case("seam")
async def dead_letters_page(world: World) -> None:
    """Dead letters come by rising position behind `after`; pages over a growing list see each of them once."""
    engine = await world.engine()
    await engine.declare([group(world, "one"), group(world, "two")])
    await publish(engine, *[str(n) for n in range(12)])
    ones, twos = await take(engine, "one", 12), await take(engine, "two", 12)
    await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in reversed(ones[:9])])
    await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in twos[:6]])

    seen: list[int] = []
    after = 0
    while page := await engine.dead_letters("one", after, 4):
        seen += [letter.entry.position for letter in page]
        after = seen[-1]
        if len(seen) == 4:
            await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in ones[9:]])
    assert seen == [delivery.entry.position for delivery in ones]
    assert len(await engine.dead_letters("two")) == 6
    assert len(await _all_letters(engine, 5)) == 18


@case("seam")
async def register_is_compare_and_set(world: World) -> None:
    """Shared state is written by whoever knows its revision; of writers that race, one wins each time."""
    engines = [await world.engine() for _ in range(3)]
    engine = engines[0]
    assert await engine.recall("k") is None
    first = await engine.register("k", b"one", 0)
    with raising(Conflict):
        await engine.register("k", b"again", 0)
    second = await engine.register("k", b"two", first)
    with raising(Conflict):
        await engines[1].register("k", b"late", first)
    record = await engines[1].recall("k")
    assert record is not None
    assert (record.value, record.revision) == (b"two", second)
    assert await engine.recall("other") is None

    await asyncio.gather(*(_increment(engines[n % 3], "counter") for n in range(10)))
    counter = await engine.recall("counter")
    assert counter is not None
    assert counter.value == b"10"


@case("seam")
async def records_survive_a_restart(world: World) -> None:
    """Shared state outlives connections and a restart; any bytes will do."""
    engine = await world.engine()
    value = bytes(range(256)) * 8
    revision = await engine.register("some/key with.dots", value, 0)
    await world.crash(engine)
    await world.restart()
    record = await (await world.engine()).recall("some/key with.dots")
    assert record is not None
    assert (record.value, record.revision) == (value, revision)


@case("seam")
async def namespace_begins_empty(world: World) -> None:
    """An empty namespace answers every look with nothing."""
    engine = await world.engine()
    await engine.declare([group(world)])
    assert await engine.read(["events.>"], 0, 10) == []
    assert await engine.subjects("events.>") == {}
    assert await engine.dead_letters() == []
    await nothing(world, engine, "g")
    await engine.publish([message()])
    assert (await engine.stats()).messages == 1


async def _increment(engine: Engine, key: str) -> None:
    while True:
        record = await engine.recall(key)
        value, revision = (0, 0) if record is None else (int(record.value), record.revision)
        try:
            await engine.register(key, str(value + 1).encode(), revision)
        except Conflict:
            continue
        return


async def _all_letters(engine: Engine, limit: int) -> set[str]:
    keys: set[str] = set()
    after = 0
    while page := await engine.dead_letters(None, after, limit):
        keys.update(letter.key for letter in page)
        after = page[-1].entry.position
    return keys
