"""Opening, closing, stopping, crashing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tidings.engine import Engine, Lagged, Signal
from tidings.errors import Closed

from .case import case, eventually
from .steps import finish, glance, group, message, nothing, publish, raising, take, take_one, texts
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
    await finish(engine, [await take_one(engine, "g")])
    async with engine.listen(["live.news"]) as signals:
        waiting = asyncio.create_task(engine.pull("g", 1, 1000.0))
        await world.wait(world.moment)
        await world.restart()
        await publish(engine, "after")
        got = await waiting
        while texts(got) == ["before"]:  # that it was done may have been lost: it was said just before the end
            await finish(engine, got)
            got = await take(engine, "g", 1)
        assert texts(got) == ["after"]
        hearing = asyncio.ensure_future(_next_said(signals))

        async def again() -> bool:
            await engine.broadcast("live.news", b"again", {})
            await asyncio.sleep(0)
            return hearing.done()

        await eventually(again, "a listener hears again after a restart")
        assert hearing.result().body == b"again"


@case("seam")
async def a_restart_loses_and_doubles_nothing(world: World) -> None:
    """Publishers at work during two restarts get a receipt for each message, and each is stored once, where it says."""
    engines = [await world.engine() for _ in range(2)]
    receipts: dict[str, int] = {}

    async def publish_all(name: str, engine: Engine) -> None:
        for number in range(60):
            text = f"{name}-{number}"
            [stored] = await engine.publish([message(text)])
            receipts[text] = stored.position

    tasks = [asyncio.create_task(publish_all(f"p{n}", engines[n % 2])) for n in range(4)]
    for share in (60, 150):

        async def reached(share: int = share) -> bool:
            return len(receipts) >= share

        await eventually(reached, "publishing goes on")
        await world.restart()
    await asyncio.gather(*tasks)
    entries = await engines[0].read(["events.>"], 0, 1000)
    assert {entry.body.decode(): entry.position for entry in entries} == receipts
    assert len(entries) == 240


@case("seam")
async def a_restart_takes_no_message_from_its_group(world: World) -> None:
    """Readers at work during a restart go on by themselves; each message is handled, at least once."""
    engines = [await world.engine() for _ in range(2)]
    await engines[0].declare([group(world)])
    sent = {str(n) for n in range(600)}
    await publish(engines[0], *sent)
    handled: set[str] = set()
    begun, finished = asyncio.Event(), asyncio.Event()

    async def handle(engine: Engine) -> None:
        while True:
            got = await engine.pull("g", 4, 30.0)
            await finish(engine, got)
            handled.update(texts(got))
            if len(handled) > 30:
                begun.set()
            if handled == sent:
                finished.set()

    async def restart() -> None:
        await begun.wait()
        await world.restart()
        await finished.wait()

    tasks = [asyncio.create_task(work) for work in (restart(), *(handle(engine) for engine in engines))]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            await task  # a reader never ends by itself: this raises why it did
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await world.wait(1.5 * world.lease)
    for engine in engines:  # what was done just before the crash may come again, and either may hold some of it
        while repeated := await glance(world, engine, "g"):
            await finish(engine, repeated)
    assert handled == sent
    stats = (await engines[0].stats()).groups["g"]
    assert (stats.waiting, stats.leased, stats.delayed, stats.dead) == (0, 0, 0, 0)


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


async def _next_said(signals: AsyncIterator[Signal | Lagged]) -> Signal:
    """The next thing that was said; that the restart may have swallowed something is no news."""
    signal = await anext(signals)
    while isinstance(signal, Lagged):
        signal = await anext(signals)
    return signal
