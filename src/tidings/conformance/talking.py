"""Requests, channels and push through the bus: what is live, and what a browser is told."""

from __future__ import annotations

import asyncio

from tidings import Message, Request
from tidings.errors import ConfigError, NoResponder, RemoteError, RequestTimeout
from tidings.watching.hub import Hub, Reader

from .app import Ordered, Packed, Process, application, over, process, reached
from .case import case, eventually
from .steps import raising
from .world import WiredWorld, World


class Double(Request[int], subject="shop.double"):
    """Asks for twice the number."""

    number: int


class Slow(Request[str], subject="shop.slow"):
    """Takes its time when told so."""

    name: str


@case("bus")
async def hundred_requests_do_not_mix(world: World) -> None:
    """A hundred requests at once, over two processes that answer: each gets its own answer, typed."""
    asker = application(world, "web")

    def answering() -> Process:
        bus = application(world)

        @bus.reply(Double)
        async def double(question: Double) -> int:
            await asyncio.sleep(0)
            return 2 * question.number

        return process(world, bus)

    async with process(world, asker, work=False), answering(), answering():
        answers = await asyncio.gather(*(asker.request(Double(number=n), timeout=30) for n in range(100)))
    assert answers == [2 * number for number in range(100)]


@case("bus")
async def a_late_answer_reaches_nobody(world: World) -> None:
    """A request without an answer in time raises `RequestTimeout`; the late answer is not taken for another's."""
    release = asyncio.Event()
    bus = application(world)

    @bus.reply(Slow)
    async def slow(question: Slow) -> str:
        if question.name == "late":
            await release.wait()
        return question.name

    async with process(world, bus):
        late = asyncio.create_task(bus.request(Slow(name="late"), timeout=4 * world.moment))
        with raising(RequestTimeout):
            await over(world, late)
        release.set()
        for name in ("a", "b", "c"):
            assert await bus.request(Slow(name=name), timeout=30) == name


@case("bus")
async def a_remote_error_arrives(world: World) -> None:
    """What the responder raises reaches the asker as `RemoteError` with type and text, umlauts and line ends too."""
    bus = application(world)

    @bus.reply(Slow)
    async def slow(question: Slow) -> str:
        raise LookupError("kein Käse\nda")

    async with process(world, bus):
        [error] = await asyncio.gather(bus.request(Slow(name="x"), timeout=30), return_exceptions=True)
    assert isinstance(error, RemoteError)
    assert (error.type, error.message) == ("LookupError", "kein Käse\nda")


@case("bus")
async def nobody_answers_is_known_at_once(world: World) -> None:
    """A request that no process answers raises `NoResponder` long before its timeout."""
    bus = application(world)
    async with process(world, bus, work=False):
        begun = world.clock.monotonic()
        with raising(NoResponder):
            await bus.request(Slow(name="x"), timeout=300)
        assert world.clock.monotonic() - begun < 60


@case("bus")
async def a_stopping_process_answers_what_it_took(world: World) -> None:
    """A process that stops answers the requests it has begun; the next ones go to others."""
    release, begun = asyncio.Event(), asyncio.Event()
    asker, bus = application(world, "web"), application(world)

    @bus.reply(Slow)
    async def slow(question: Slow) -> str:
        begun.set()
        await release.wait()
        return question.name

    async with process(world, asker, work=False):
        async with process(world, bus):
            asking = asyncio.create_task(asker.request(Slow(name="x"), timeout=300))
            await begun.wait()
            asyncio.get_running_loop().call_later(0.1, release.set)
        assert await asking == "x"
        await world.spread()
        with raising(NoResponder):
            await asker.request(Slow(name="y"), timeout=300)


@case("bus")
async def every_process_hears_a_broadcast(world: World) -> None:
    """A broadcast is heard by each process that listens, in order; on a durable subject it is refused."""
    heard: list[list[str]] = [[], []]
    speaker = application(world, "web")

    def listening(number: int) -> Process:
        bus = application(world)

        @bus.listen("prices.*")
        async def hear(text: str) -> None:
            heard[number].append(text)

        return process(world, bus)

    async with process(world, speaker, work=False), listening(0), listening(1):
        for number in range(10):
            assert await speaker.broadcast("prices.tea", str(number)) is not False
        await reached(world, lambda: all(len(each) == 10 for each in heard), "both hear all")
        with raising(ConfigError):
            await speaker.broadcast("events.shop.ordered", "x")
    said = [str(number) for number in range(10)]
    assert [[text.strip('"') for text in each] for each in heard] == [said, said]


@case("bus")
async def push_misses_nothing(world: World) -> None:
    """A browser gets every event of its subjects behind its place, once and in order, over a change of the web process
    in the middle."""
    bus = application(world)
    filters = ["events.shop.ordered"]
    async with process(world, bus, work=False) as running:
        hub = Hub(running.engine, filters)
        reader, _ = await hub.join()
        await bus.publish_many([event for n in range(10) for event in (Ordered(number=n), Packed(number=n))])
        got = await _read(hub, reader, 6)
        place, log_id = reader.position, hub.log_id
        await hub.close()
        await bus.publish_many([Ordered(number=number) for number in range(10, 300)])
        elsewhere = Hub(await world.engine(), filters)
        resumed, oldest = await elsewhere.join()
        assert elsewhere.log_id == log_id
        assert oldest <= place
        resumed.position = place
        got += await _read(elsewhere, resumed, 294)
        await elsewhere.close()
    assert got == [b'{"number":%d}' % number for number in range(300)]


@case("bus", wired=True)
async def push_goes_on_after_a_cut(world: WiredWorld) -> None:
    """When the wire of a web process is cut and mended, its browsers get what was published meanwhile, once, either on
    the same stream or when they come again with their place."""
    bus = application(world)
    engine, link = await world.linked(patience=2.0)
    hub = Hub(engine, ["events.shop.>"])
    async with process(world, bus, work=False):
        reader, _ = await hub.join()
        got: list[bytes] = []
        await bus.publish_many([Ordered(number=number) for number in range(3)])
        got += await _read(hub, reader, 3)
        link.cut()
        await bus.publish_many([Ordered(number=number) for number in range(3, 8)])
        await world.wait(world.moment)
        link.mend()

        async def caught_up() -> bool:
            async for entry in hub.entries(reader):
                got.append(entry.body)
                if len(got) == 8:
                    return True
            return False

        await eventually(caught_up, "the browser gets the rest")
        await hub.close()
    assert got == [b'{"number":%d}' % number for number in range(8)]


@case("bus")
async def handlers_may_ask_and_speak(world: World) -> None:
    """A handler asks other processes and speaks to channels like anybody else."""
    heard: list[str] = []
    answers: list[int] = []
    shop, counter = application(world), application(world, "counter")

    @counter.reply(Double)
    async def double(question: Double, about: Message) -> int:
        heard.append(about.correlation_id)
        return 2 * question.number

    @shop.on(Ordered, group="pack")
    async def pack(order: Ordered) -> None:
        answers.append(await shop.request(Double(number=order.number), timeout=30))

    async with process(world, counter), process(world, shop):
        receipt = await shop.publish(Ordered(number=4))
        await reached(world, lambda: bool(answers), "the handler has its answer")
    assert answers == [8]
    assert heard == [receipt.id]


async def _read(hub: Hub, reader: Reader, count: int) -> list[bytes]:
    found: list[bytes] = []
    async for entry in hub.entries(reader):
        found.append(entry.body)
        if len(found) == count:
            break
    return found
