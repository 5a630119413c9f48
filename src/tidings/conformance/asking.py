"""Requests that are answered by more than one message: streams of items, and answers of everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

from tidings import Bus, Request
from tidings.errors import EngineUnavailable, NoResponder, RemoteError, StreamBroken, TooFewAnswers

from .app import application, over, process, reached
from .case import case
from .steps import raising
from .world import WiredWorld, World


class Numbers(Request[int], subject="shop.numbers"):
    """Asks for all numbers below one."""

    below: int


class Roll(Request[str], subject="shop.roll"):
    """Asks everybody for the name."""


@case("bus")
async def a_stream_arrives_in_order(world: World) -> None:
    """What a responder yields arrives item by item in its order, and it never runs far ahead of a slow asker."""
    asker, bus = application(world, "web"), application(world)
    made: list[int] = []

    @bus.reply(Numbers)
    async def numbers(question: Numbers) -> AsyncIterator[int]:
        for number in range(question.below):
            made.append(number)
            yield number

    got: list[int] = []
    async with process(world, asker, work=False), process(world, bus):
        async for number in asker.stream(Numbers(below=300), timeout=300):
            got.append(number)
            assert len(made) - len(got) < 100
            await asyncio.sleep(0)
        assert [number async for number in asker.stream(Numbers(below=0), timeout=300)] == []
    assert got == made == list(range(300))


@case("bus")
async def leaving_a_stream_ends_it(world: World) -> None:
    """When the asker stops in the middle, the responder's generator ends, and asking goes on."""
    asker, bus = application(world, "web"), application(world)
    ended = asyncio.Event()

    @bus.reply(Numbers)
    async def numbers(question: Numbers) -> AsyncIterator[int]:
        try:
            for number in range(question.below):
                yield number
        finally:
            ended.set()

    async with process(world, asker, work=False), process(world, bus):
        async with aclosing(asker.stream(Numbers(below=1_000_000), timeout=3 * world.moment)) as items:
            assert [await anext(items) for _ in range(3)] == [0, 1, 2]
        await reached(world, ended.is_set, "the generator ends")
        assert [number async for number in asker.stream(Numbers(below=2), timeout=300)] == [0, 1]


@case("bus")
async def an_error_ends_a_stream(world: World) -> None:
    """What the generator raises reaches the asker behind the items before it; without a responder it is known at
    once."""
    asker, bus = application(world, "web"), application(world)

    @bus.reply(Numbers)
    async def numbers(question: Numbers) -> AsyncIterator[int]:
        yield 1
        yield 2
        raise LookupError("no more")

    async with process(world, asker, work=False):
        with raising(NoResponder):
            await anext(asker.stream(Numbers(below=3), timeout=300))
        async with process(world, bus):
            items = asker.stream(Numbers(below=3), timeout=300)
            assert [await anext(items), await anext(items)] == [1, 2]
            ended = (await asyncio.gather(anext(items), return_exceptions=True))[0]
    assert isinstance(ended, RemoteError)
    assert (ended.type, ended.message) == ("LookupError", "no more")


@case("bus")
async def a_stopping_process_breaks_its_streams_off(world: World) -> None:
    """A process that stops does not wait for a stream without end: its asker is told, and asks another one."""
    asker, bus = application(world, "web"), application(world)

    @bus.reply(Numbers)
    async def numbers(question: Numbers) -> AsyncIterator[int]:
        while True:
            yield 0
            await asyncio.sleep(0)

    async with process(world, asker, work=False):
        stack = AsyncExitStack()
        await stack.enter_async_context(process(world, bus))
        items = asker.stream(Numbers(below=1), timeout=300)
        assert await anext(items) == 0
        stopping = asyncio.create_task(stack.aclose())
        with raising(RemoteError):
            async for _ in items:
                pass
        await over(world, stopping)


@case("bus", wired=True)
async def a_dead_stream_is_noticed(world: WiredWorld) -> None:
    """A responder that is cut off in the middle of a stream is noticed by its silence, and it notices that too."""
    asker, bus = application(world, "web"), application(world)
    engine, link = await world.linked(patience=1.0)
    ended, waiting = asyncio.Event(), asyncio.Event()

    @bus.reply(Numbers)
    async def numbers(question: Numbers) -> AsyncIterator[int]:
        try:
            yield 1
            waiting.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with process(world, asker, work=False), process(world, bus, engine=engine):
        items = asker.stream(Numbers(below=1), timeout=2 * world.moment)
        assert await anext(items) == 1
        await waiting.wait()
        link.cut()
        with raising(StreamBroken):
            await anext(items)
        await reached(world, ended.is_set, "the generator ends")
        link.mend()


@case("bus", wired=True)
async def an_asker_that_was_cut_off_is_told(world: WiredWorld) -> None:
    """An asker whose connection breaks with items on the way is told at once, and the responder's generator ends."""
    asker, bus = application(world, "web"), application(world)
    engine, link = await world.linked()
    going, made, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @bus.reply(Numbers)
    async def numbers(question: Numbers) -> AsyncIterator[int]:
        try:
            yield 0
            await going.wait()
            for number in range(1, question.below):
                yield number
            made.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with process(world, asker, work=False, engine=engine), process(world, bus):
        items = asker.stream(Numbers(below=5), timeout=300)
        assert await anext(items) == 0
        link.stall()
        going.set()
        await made.wait()
        await world.wait(world.moment)
        link.drop()
        with raising(EngineUnavailable, StreamBroken):
            async for _ in items:
                pass
        await reached(world, ended.is_set, "the generator ends")


@case("bus", wired=True)
async def a_responder_that_was_cut_off_is_noticed(world: WiredWorld) -> None:
    """A responder whose connection breaks, and with it the word that an item was taken, leaves no asker waiting."""
    asker, bus = application(world, "web"), application(world)
    engine, link = await world.linked()

    @bus.reply(Numbers)
    async def numbers(question: Numbers) -> AsyncIterator[int]:
        for number in range(question.below):
            yield number

    async with process(world, asker, work=False), process(world, bus, engine=engine):
        items = asker.stream(Numbers(below=2), timeout=10 * world.moment)
        assert await anext(items) == 0
        await world.wait(world.moment)  # the last one has arrived
        link.stall()
        assert await anext(items) == 1
        await world.wait(world.moment)
        link.drop()
        with raising(StreamBroken):
            await anext(items)


@case("bus")
async def everybody_is_asked(world: World) -> None:
    """Of five processes one dies after it had the question and one is slow: three answers are there in the asked time,
    and the two that are missing are known by name."""
    asker = application(world, "web")
    slow, dead = asyncio.Event(), asyncio.Event()

    def responder(name: str, hold: asyncio.Event | None = None) -> Bus:
        bus = application(world, name)

        @bus.reply(Roll)
        async def roll(question: Roll) -> str:
            if hold is not None:
                await hold.wait()
            return name

        return bus

    async with process(world, asker, work=False) as asking:
        with raising(NoResponder):
            await asker.gather(Roll(), wait=30)
        async with AsyncExitStack() as stack:
            for name in ("one", "two", "three"):
                await stack.enter_async_context(process(world, responder(name)))
            await stack.enter_async_context(process(world, responder("slow", slow)))
            dying = await world.engine()
            doomed = await stack.enter_async_context(process(world, responder("dead", dead), engine=dying))
            assert asking.identity != doomed.identity
            gathering = asyncio.create_task(asker.gather(Roll(), wait=4 * world.moment))
            await world.wait(world.moment)
            await world.crash(dying)
            gathered = await over(world, gathering)
            assert sorted(gathered) == ["one", "three", "two"]
            assert len(gathered.missing) == 2
            assert {who.rpartition("/")[2].partition("-")[0] for who in gathered.missing} == {"slow", "dead"}
            assert len(await asker.gather(Roll(), wait=300, at_least=3)) == 3
            with raising(TooFewAnswers):
                await over(world, asyncio.ensure_future(asker.gather(Roll(), wait=world.moment, at_least=4)))
            slow.set()
            dead.set()


@case("bus")
async def an_error_is_one_of_the_answers(world: World) -> None:
    """One that raises is known with its error, and does not hide the answers of the others."""
    asker, good, bad = application(world, "web"), application(world, "good"), application(world, "bad")

    @good.reply(Roll)
    async def answers(question: Roll) -> str:
        return "here"

    @bad.reply(Roll)
    async def raises(question: Roll) -> str:
        raise LookupError("lost")

    async with process(world, asker, work=False), process(world, good), process(world, bad):

        async def both() -> bool:
            gathered = await over(world, asyncio.ensure_future(asker.gather(Roll(), wait=world.moment)))
            assert list(gathered) == ["here"]
            return [str(error) for error in gathered.errors.values()] == ["LookupError: lost"]

        await reached(world, both, "both have answered")
