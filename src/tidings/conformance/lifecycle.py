"""Opening, closing, stopping, crashing."""

from __future__ import annotations

import asyncio

from tidings.engine import Engine
from tidings.errors import Closed

from .case import case, eventually
from .steps import finish, group, message, nothing, publish, raising, take, take_one, texts
from .world import World


@case("seam")
async def open_and_close_are_idempotent(world: World) -> None:
    """Opening or closing twice, or at once from several tasks, is one; afterwards everything raises `Closed`."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await asyncio.gather(engine.open(), engine.open())
    await publish(engine, "a")
    delivery = await take_one(engine, "g")
    await asyncio.gather(engine.close(), engine.close())
    await engine.close()

    with raising(Closed):
        await publish(engine, "b")
    with raising(Closed):
        await engine.pull("g", 1, 0.0)
    with raising(Closed):
        await engine.read(["events.>"], 0, 1)
    with raising(Closed):
        await engine.extend([delivery])
    with raising(Closed):
        await engine.stats()


@case("seam")
async def closing_ends_what_waits(world: World) -> None:
    """`close` ends waiting pulls, reads and listeners at once with `Closed`."""
    engine = await world.engine()
    await engine.declare([group(world)])

    async def listen() -> None:
        async with engine.listen(["live.a"]) as signals:
            async for signal in signals:
                raise AssertionError(f"nobody said {signal!r}")

    waiting = [
        asyncio.create_task(engine.pull("g", 1, 1000.0)),
        asyncio.create_task(engine.read(["events.>"], 0, 1, wait=1000.0)),
        asyncio.create_task(listen()),
    ]
    await world.wait(world.moment)
    assert [task.done() for task in waiting] == [False] * 3
    await engine.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Closed] * 3


@case("seam")
async def closing_hands_back(world: World) -> None:
    """What a closed engine had pulled and not settled goes to others at once and burns no attempt."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, *"abcd")
    await take(engine, "g", 3)
    begun = world.clock.monotonic()
    await engine.close()
    got = await take(other, "g", 4)
    assert sorted(texts(got)) == ["a", "b", "c", "d"]
    assert [d.attempts for d in got] == [0] * 4
    assert world.clock.monotonic() - begun < world.lease * 0.8


@case("seam")
async def stop_pulling_hands_back(world: World) -> None:
    """After `stop_pulling` a waiting pull ends, and all that was not given out goes to others at once; what was given
    out can still be settled."""
    stopping, other = await world.engine(), await world.engine()
    await stopping.declare([group(world)])
    waiting = asyncio.create_task(stopping.pull("g", 5, 1000.0))
    await world.wait(world.moment)
    await stopping.stop_pulling("g")
    assert await waiting == []

    await publish(other, *"abcdef")
    given = await take(stopping, "g", 2)
    begun = world.clock.monotonic()
    await stopping.stop_pulling("g")
    got = await take(other, "g", 4)
    assert world.clock.monotonic() - begun < world.lease * 0.8
    assert sorted(texts(given) + texts(got)) == list("abcdef")
    assert [d.attempts for d in got] == [0] * 4
    await finish(stopping, given)
    await finish(other, got)
    await nothing(world, other, "g")


@case("seam")
async def everything_goes_on_after_a_restart(world: World) -> None:
    """A restart of what keeps the messages ends no connection for good: publishing, pulling and listening go on."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "before")
    pull = asyncio.create_task(engine.pull("g", 1, 1000.0))
    first = await pull
    async with engine.listen(["live.news"]) as signals:
        waiting = asyncio.create_task(engine.pull("g", 1, 1000.0))
        await world.wait(world.moment)
        await world.restart()
        await publish(engine, "after")
        assert texts(first + await waiting) == ["before", "after"]
        hearing = asyncio.ensure_future(anext(signals))

        async def heard() -> bool:
            await engine.broadcast("live.news", b"again", {})
            await asyncio.sleep(0)
            return hearing.done()

        await eventually(heard, "a listener hears again after a restart")
        assert hearing.result().body == b"again"


@case("seam")
async def open_close_stress(world: World) -> None:
    """Opening, using and closing connections over and over, many at a time, leaves nothing broken behind."""
    keeper = await world.engine()
    await keeper.declare([group(world)])

    async def use(number: int) -> None:
        for turn in range(5):
            engine: Engine = await world.engine()
            await engine.publish([message(f"{number}-{turn}")])
            got = await engine.pull("g", 1, 0.0)
            await finish(engine, got[turn % 2 :])
            await engine.close()

    await asyncio.gather(*(use(number) for number in range(6)))
    assert (await keeper.stats()).last == 30


@case("seam")
async def description_hides_nothing_needed(world: World) -> None:
    """An engine says for people what it is, and a message has a limit that is worth having."""
    engine = await world.engine()
    assert engine.description.strip()
    assert isinstance(engine.durable, bool)
    assert engine.max_message >= 64 * 1024
