"""Groups with `order=True`: each key in its order, whatever fails, dies, or is cut off."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from sqlalchemy.ext.asyncio import AsyncSession

from tidings import Bus, Event, Message, Reject, RetryPolicy, claims
from tidings.engine import Engine

from .app import application, handled, letters, process, reached
from .case import case
from .database import database, write_step
from .world import WiredWorld, World


class Moved(Event, subject="events.shop.moved", key="item"):
    """The next step of one of several things."""

    item: str
    step: int


class Steps:
    """What a handler has done, by key."""

    def __init__(self) -> None:
        self.of: dict[str, list[int]] = defaultdict(list)

    @property
    def count(self) -> int:
        return sum(map(len, self.of.values()))

    def done(self, moved: Moved) -> None:
        self.of[moved.item].append(moved.step)


def moves(items: str, steps: range) -> list[Moved]:
    """Each item's steps, the items in turns."""
    return [Moved(item=item, step=step) for step in steps for item in items]


async def parked(engine: Engine, group: str) -> int:
    return (await engine.stats()).groups[group].parked


@case("bus")
async def a_key_keeps_its_order_over_failures(world: World) -> None:
    """A message that fails is tried again before any later one of its key is begun, with its attempts counted; other
    keys go on meanwhile. Messages without a key are one sequence."""
    bus = application(world, retry=RetryPolicy(attempts=4, first=world.lease / 4, most=world.lease / 4))
    steps, running, attempts = Steps(), set[str](), list[tuple[str, int, int]]()

    @bus.on(Moved, "events.shop.plain", group="move", order=True, concurrency=4)
    async def move(about: Message) -> None:
        item, step = about.data.item if about.key else "", about.data.step if about.key else about.data["step"]
        assert item not in running, "two of one key at the same time"
        running.add(item)
        try:
            await world.wait(0.0)
            if step in (0, 3):
                attempts.append((item, step, about.attempt))
                if about.attempt < 3 and item in ("a", ""):
                    raise ValueError("not yet")
            steps.of[item].append(step)
        finally:
            running.discard(item)

    async with process(world, bus) as here:
        await bus.publish_many(moves("abcd", range(6)))
        for step in range(6):
            await bus.publish("events.shop.plain", {"step": step})
        await reached(world, lambda: all(steps.of[item] == list(range(6)) for item in "bcd"), "other keys go on")
        await reached(world, lambda: steps.count == 30, "all of them are handled")
        await handled(world, here.engine, "move")
        assert await parked(here.engine, "move") == 0
    assert dict(steps.of) == {item: list(range(6)) for item in ("a", "b", "c", "d", "")}
    assert [each for each in attempts if each[0] == "a"] == [("a", step, n) for step in (0, 3) for n in (1, 2, 3)]


@case("bus")
async def a_dead_letter_parks_its_key(world: World) -> None:
    """Behind a dead letter the later messages of its key wait, set aside and shown, also those that come; other keys go
    on. Redriven, it is handled first, then they, in their order."""
    bus = application(world)
    steps, broken = Steps(), True

    @bus.on(Moved, group="move", order=True, concurrency=4)
    async def move(moved: Moved) -> None:
        if broken and (moved.item, moved.step) == ("a", 1):
            raise LookupError("no such place")
        steps.done(moved)

    async with process(world, bus) as here:
        await bus.publish_many(moves("ab", range(4)))
        [letter] = await letters(world, here.engine, "move")
        await reached(world, lambda: steps.of["b"] == [0, 1, 2, 3], "the other key goes on")
        last = await bus.publish(Moved(item="a", step=4))
        await reached(world, lambda: _is_parked(here.engine, 3), "the later ones are parked")
        [entry] = await here.engine.read(["events.shop.moved"], (last.position or 0) - 1, 1)
        ledger, _ = await claims.load(here.engine)
        state = (await claims.explain(here.engine, ledger, entry))["move"]
        assert (state.state, f"behind {letter.entry.position}" in state.detail) == ("parked", True)
        assert steps.of["a"] == [0]

        broken = False
        assert await here.engine.redrive([letter]) == 1
        await bus.publish(Moved(item="a", step=5))
        await reached(world, lambda: len(steps.of["a"]) == 6, "all of the key is handled")
        await handled(world, here.engine, "move")
        assert await parked(here.engine, "move") == 0
    assert steps.of["a"] == list(range(6))


async def _is_parked(engine: Engine, count: int) -> bool:
    return await parked(engine, "move") == count


@case("bus")
async def parked_outlives_the_worker(world: World) -> None:
    """What is parked stays parked over a restart of the worker; a dead letter that is dropped lets it go, and the
    next one that dies parks the rest again."""
    bus = application(world)
    steps, bad = Steps(), {1, 3}

    @bus.on(Moved, group="move", order=True)
    async def move(moved: Moved) -> None:
        if moved.step in bad:
            raise Reject("wrong step")
        steps.done(moved)

    async with process(world, bus) as here:
        await bus.publish_many(moves("a", range(5)))
        await reached(world, lambda: _is_parked(here.engine, 3), "the later ones are parked")
    async with process(world, bus) as here:
        await bus.publish(Moved(item="a", step=5))
        await reached(world, lambda: _is_parked(here.engine, 4), "what comes is parked as well")
        [first] = await letters(world, here.engine, "move")
        assert await here.engine.discard([first]) == 1
        [second] = await letters(world, here.engine, "move")
        await reached(world, lambda: _is_parked(here.engine, 2), "the rest is parked again")
        assert steps.of["a"] == [0, 2]
    bad.clear()
    assert await _redriven_while_nobody_works(world, second.entry.position) == 1
    async with process(world, bus) as here:
        await reached(world, lambda: steps.count == 5, "all are handled")
        await handled(world, here.engine, "move")
    assert steps.of["a"] == [0, 2, 3, 4, 5]


async def _redriven_while_nobody_works(world: World, position: int) -> int:
    engine = await world.engine()
    [letter] = await engine.dead_letters("move")
    assert letter.entry.position == position
    return await engine.redrive([letter])


@case("bus")
async def a_standby_takes_over(world: World) -> None:
    """One process is active and another stands by. When the first dies in the middle, the second goes on in order, and
    every effect is in the database once."""
    async with database() as db:
        await db.create_steps()
        by: dict[str, int] = defaultdict(int)
        shops = [application(world, name, sessions=db.sessions) for name in ("first", "second")]
        for shop in shops:
            _write_steps(shop, by)
        doomed = await world.engine()
        async with process(world, application(world, "web"), work=False) as web:
            async with process(world, shops[0], engine=doomed), process(world, shops[1]):
                await web.bus.publish_many(moves("ab", range(20)))
                await reached(world, lambda: by["first"] >= 10, "the first is active")
                assert by["second"] == 0
                await world.crash(doomed)
                await web.bus.publish_many(moves("ab", range(20, 30)))
                await handled(world, web.engine, "move")
            assert by["second"] > 0
        assert await db.steps() == {"a": list(range(30)), "b": list(range(30))}


@case("bus", wired=True)
async def one_that_is_cut_off_commits_nothing(world: WiredWorld) -> None:
    """The active worker loses the engine in the middle of a handler, though not its database: another takes over, and
    whatever the first still does is undone. Every effect is there once, in order."""
    async with database() as db:
        await db.create_steps()
        by: dict[str, int] = defaultdict(int)
        shops = [application(world, name, sessions=db.sessions) for name in ("first", "second")]
        hanging = asyncio.Event()
        for shop in shops:
            _write_steps(shop, by, hang=hanging)
        engine, link = await world.linked()
        web = await world.engine()
        async with process(world, shops[0], engine=engine), process(world, shops[1]):
            await shops[1].publish_many(moves("ab", range(10)))
            await reached(world, hanging.is_set, "the first is in the middle of one")
            link.cut()
            await reached(world, lambda: by["second"] > 0, "the second goes on")
            await handled(world, web, "move")
            link.mend()
        assert await db.steps() == {"a": list(range(10)), "b": list(range(10))}


def _write_steps(bus: Bus, by: dict[str, int], hang: asyncio.Event | None = None) -> None:
    """Each step is a row; with `hang`, the first process does not come to the end of its fifth."""
    name = bus.name

    @bus.on(Moved, group="move", order=True, commit="each", timeout=600)
    async def move(moved: Moved, session: AsyncSession) -> None:
        by[name] += 1
        await write_step(session, moved.item, moved.step)
        if hang is not None and name == "first" and by[name] == 5:
            hang.set()
            await asyncio.Event().wait()


@case("bus", wired=True)
async def order_is_kept_over_a_server_kill(world: WiredWorld) -> None:
    """`kill -9` to the server in the middle: every effect is in the database once, each key in order."""
    async with database() as db:
        await db.create_steps()
        by: dict[str, int] = defaultdict(int)
        shop = application(world, "first", sessions=db.sessions)
        _write_steps(shop, by)
        async with process(world, shop, engine=await world.engine(patience=40.0)) as here:
            await shop.publish_many(moves("abc", range(20)))
            await reached(world, lambda: by["first"] >= 10, "it is at work")
            await world.kill()
            await world.start()
            await shop.publish_many(moves("abc", range(20, 30)))
            await handled(world, here.engine, "move")
        assert await db.steps() == {item: list(range(30)) for item in "abc"}
