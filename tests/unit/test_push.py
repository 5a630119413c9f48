"""The push hub on the memory engine: one reader of the log, many browsers, no gaps."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

import tidings
from tidings.clock import SystemClock
from tidings.engine import Entry, Lagged, Outgoing, Record, Signal, Stats
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.errors import EngineError, EngineUnavailable
from tidings.push.frames import position_of
from tidings.testing import TestBus
from tidings.watching import hub as hubs_module
from tidings.watching.failures import Failed, channel
from tidings.watching.hub import Hub, Reader
from todo_app import pushed, served

T = TypeVar("T")
FILTERS = ["events.seen.>"]


async def soon(waiting: Awaitable[T]) -> T:
    async with asyncio.timeout(10):
        return await waiting


class World:
    """An engine, and a hub on it."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.hub = Hub(engine, FILTERS)
        self._count = 0

    async def publish(self, count: int = 1, subject: str = "events.seen.x") -> list[str]:
        """Store some events; returns their bodies."""
        bodies = [str(self._count + n) for n in range(count)]
        self._count += count
        await self.engine.publish([Outgoing(subject, body.encode(), {}, f"{subject} {body}") for body in bodies])
        return bodies

    async def take(self, reader: Reader, count: int) -> list[str]:
        """The next entries of a browser, as its stream would send them."""
        async with aclosing(self.hub.entries(reader)) as entries:
            return [(await soon(anext(entries))).body.decode() for _ in range(count)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    engine = MemoryEngine(MemoryStore(SystemClock()))
    await engine.open()
    made = World(engine)
    yield made
    await made.hub.close()
    await engine.close()


async def test_each_browser_gets_everything_behind_its_place(world: World) -> None:
    """Browsers that join at different times each get what came after them, once and in order, and no other subject."""
    await world.publish(3)
    first, _ = await world.hub.join()
    one = await world.publish(2)
    await world.publish(2, "events.other.x")
    second, _ = await world.hub.join()
    two = await world.publish(2)
    assert await world.take(first, 4) == one + two
    assert await world.take(second, 2) == two


async def test_a_slow_browser_reads_from_the_log_what_is_not_kept(world: World) -> None:
    """More events than the hub keeps come to a browser that took none of them: none is missing, none comes twice."""
    reader, _ = await world.hub.join()
    fast, _ = await world.hub.join()
    count = 3 * hubs_module.KEPT
    bodies = await world.publish(count)
    assert await world.take(fast, count) == bodies
    assert len(world.hub._kept) == hubs_module.KEPT
    late = await world.publish(5)
    assert await world.take(reader, count + 5) == bodies + late


class Counting(MemoryEngine):
    """An engine that counts those who wait for news of the log, and those who listen."""

    waiting = most = listeners = 0

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float = 0.0) -> list[Entry]:
        self.waiting += bool(wait)
        self.most = max(self.most, self.waiting)
        try:
            return await super().read(filters, after, limit, wait)
        finally:
            self.waiting -= bool(wait)

    @asynccontextmanager
    async def listen(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[Signal | Lagged]]:
        self.listeners += 1
        async with super().listen(channels) as signals:
            yield signals


class Late(MemoryEngine):
    """An engine whose answers to reads that do not wait are on their way for as long as the test wants."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.asked, self.arrives = asyncio.Event(), asyncio.Event()

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float = 0.0) -> list[Entry]:
        found = await super().read(filters, after, limit, wait)
        if not wait:
            self.asked.set()
            await self.arrives.wait()
        return found


async def test_what_overtakes_the_answer_to_a_browser_that_resumes_is_not_skipped() -> None:
    """A browser resumes where nothing is stored behind its place, and more than is kept comes before it is told so:
    it gets all of that."""
    engine = Late(MemoryStore(SystemClock()))
    await engine.open()
    world = World(engine)
    await world.publish(3, "events.other.x")
    reader, _ = await world.hub.join()
    fast, _ = await world.hub.join()
    reader.position = 0
    count = 2 * hubs_module.KEPT
    resumed = asyncio.create_task(world.take(reader, count))
    await soon(engine.asked.wait())
    bodies = await world.publish(count)
    while (world.hub._position - 3) < count:
        await fast.news()
    engine.arrives.set()
    assert await resumed == bodies
    await world.hub.close()
    await engine.close()


class Forgetful(MemoryEngine):
    """An engine that cannot tell for once what it remembers."""

    forgets = False

    async def recall(self, key: str) -> Record | None:
        if self.forgets:
            self.forgets = False
            raise EngineUnavailable("nobody answers")
        return await super().recall(key)


async def test_a_failure_that_could_not_be_told_is_told_as_missing() -> None:
    """When a failure is heard and the engine does not say whom it concerns, the watchers know that they miss some."""
    engine = Forgetful(MemoryStore(SystemClock()))
    await engine.open()
    world = World(engine)
    reader, _ = await world.hub.join()
    engine.forgets = True
    notice = Failed("g", 1, "events.a", "i", "i", "dead", 8, "handler_error", "E")
    while not await engine.broadcast(channel("tidings"), msgspec.json.encode([notice]), {}):
        await asyncio.sleep(0)
    async with aclosing(world.hub.follow(reader)) as news:
        assert await soon(anext(news)) == Lagged(None)
    await world.hub.close()
    await engine.close()


async def test_one_reads_for_all_and_ends_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many browsers watch, one read of this process waits at the engine and one listens for failures; when the
    last browser has gone nobody does."""
    monkeypatch.setattr(hubs_module, "_IDLE", 0.05)
    engine = Counting(MemoryStore(SystemClock()))
    await engine.open()
    world = World(engine)
    readers = [(await world.hub.join())[0] for _ in range(50)]
    tasks = [asyncio.create_task(world.take(reader, 20)) for reader in readers]
    bodies = await world.publish(20)
    assert await soon(asyncio.gather(*tasks)) == [bodies] * 50
    assert (engine.most, engine.listeners) == (1, 1)
    reading = world.hub._task
    assert reading is not None
    del readers, tasks
    gc.collect()
    await soon(asyncio.wait({reading}))
    assert engine.waiting == 0
    again, _ = await world.hub.join()
    late = await world.publish(1)
    assert await world.take(again, 1) == late
    await world.hub.close()
    await engine.close()


class Clinging(MemoryEngine):
    """An engine at which the end of listening takes a while."""

    @asynccontextmanager
    async def listen(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[Signal | Lagged]]:
        async with super().listen(channels) as signals:
            try:
                yield signals
            finally:
                for _ in range(50):
                    await asyncio.sleep(0)


async def test_one_who_comes_while_the_last_reading_ends_is_read_for() -> None:
    """A browser that joins between the end of the reading for want of browsers, and the end of what belongs to it, gets
    its events as any other."""
    engine = Clinging(MemoryStore(SystemClock()))
    await engine.open()
    world = World(engine)
    for turns in range(0, 60, 6):
        reader, _ = await world.hub.join()
        first = await world.publish()
        assert await world.take(reader, 1) == first
        del reader
        async with asyncio.timeout(10):
            while world.hub._readers:
                await asyncio.sleep(0)
                gc.collect()
        await world.publish()  # wakes the reading, for nobody
        for _ in range(turns):
            await asyncio.sleep(0)
        late, _ = await world.hub.join()
        taking = asyncio.create_task(world.take(late, 1))
        for _ in range(60):
            await asyncio.sleep(0)
        assert await world.publish() == await taking
        del late, taking
    await world.hub.close()
    await engine.close()


class Distant(MemoryEngine):
    """An engine whose answer about the log's end is old when it arrives."""

    async def stats(self) -> Stats:
        answer = await super().stats()
        for _ in range(20):
            await asyncio.sleep(0)
        return answer


async def test_joining_while_events_come_misses_none() -> None:
    """Wherever a browser joins in a running stream of events, it gets exactly those behind the place it was told."""
    engine = Distant(MemoryStore(SystemClock()))
    await engine.open()
    world = World(engine)
    bodies: list[str] = []

    async def joining() -> None:
        reader, _ = await world.hub.join()
        place = reader.position
        assert await world.take(reader, 200 - place) == bodies[place:]

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(joining()))
        bodies.extend(await world.publish())
        await asyncio.sleep(0)
    await soon(asyncio.gather(*tasks))
    await world.hub.close()
    await engine.close()


async def test_a_browser_that_never_began_is_forgotten(world: World) -> None:
    """A stream that is given up before its first byte leaves nothing behind."""
    await world.hub.join()
    gc.collect()
    assert len(world.hub._readers) == 0


async def test_closing_ends_the_streams(world: World) -> None:
    """A process that stops ends its streams, so that the browsers go elsewhere."""
    reader, _ = await world.hub.join()
    stream = asyncio.create_task(everything(world.hub, reader))
    await world.publish()
    await world.hub.close()
    assert len(await soon(stream)) <= 1


async def test_without_the_engine_streams_end_and_none_begins(world: World) -> None:
    """When the engine is closed, open streams end and joining raises what the endpoint answers 503 to."""
    reader, _ = await world.hub.join()
    stream = asyncio.create_task(everything(world.hub, reader))
    await asyncio.sleep(0)
    await world.engine.close()
    assert await soon(stream) == []
    with pytest.raises(EngineError):
        await world.hub.join()


async def test_a_thousand_browsers_that_are_sent_away_are_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the engine is away the log tells it once, and not for each stream."""
    await world.publish(3)
    readers = [(await world.hub.join())[0] for _ in range(1000)]
    for reader in readers:
        reader.position = 0  # further back than what is kept

    async def away(*_: object, **__: object) -> list[Entry]:
        raise EngineUnavailable("nobody answers")

    monkeypatch.setattr(world.engine, "read", away)
    streams = await soon(asyncio.gather(*(everything(world.hub, reader) for reader in readers)))
    assert streams == [[]] * 1000
    [said] = [record.getMessage() for record in caplog.records if "push waits" in record.getMessage()]
    assert said.endswith(": nobody answers")


async def everything(hub: Hub, reader: Reader) -> list[Entry]:
    return [entry async for entry in hub.entries(reader)]


class Stumbling(MemoryEngine):
    """An engine that fails once in a way nobody expects."""

    stumbles = True

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float = 0.0) -> list[Entry]:
        if wait and self.stumbles:
            self.stumbles = False
            raise ZeroDivisionError
        return await super().read(filters, after, limit, wait)


async def test_an_error_of_our_own_ends_the_streams_and_the_next_browser_begins_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No browser hangs on a hub that reads no more: it is sent away, and finds a working one when it comes back."""
    engine = Stumbling(MemoryStore(SystemClock()))
    await engine.open()
    world = World(engine)
    reader, _ = await world.hub.join()
    assert await soon(everything(world.hub, reader)) == []
    again, _ = await world.hub.join()
    bodies = await world.publish(2)
    assert await world.take(again, 2) == bodies
    assert "push itself failed" in caplog.text
    await world.hub.close()
    await engine.close()


async def test_all_processes_give_the_log_one_name(world: World) -> None:
    """Hubs that start together agree on the log's name; another log has another one."""
    hubs = [Hub(world.engine, FILTERS) for _ in range(5)]
    await asyncio.gather(*(hub.join() for hub in hubs))
    assert len({hub.log_id for hub in hubs}) == 1
    other = MemoryEngine(MemoryStore(SystemClock()))
    await other.open()
    assert await hubs_module.log_id(other) != hubs[0].log_id
    for hub in hubs:
        await hub.close()
    await other.close()


@pytest.mark.parametrize(
    ("given", "position"),
    [
        ("a1-5", 5),
        ("a1-3", 3),
        ("a1-9", 9),
        ("a1-2", None),
        ("a1-10", None),
        ("b2-5", None),
        ("5", None),
        ("a1-", None),
        ("a1--5", None),
        ("a1-٥", None),
        ("a1-" + "9" * 30, None),
    ],
)
async def test_a_place_is_resumed_only_if_everything_behind_it_is_stored(
    world: World, given: str, position: int | None
) -> None:
    """Positions of this log from the oldest stored (behind 3) to its end (9) resume; everything else does not."""
    world.hub.log_id = "a1"
    assert position_of(given, world.hub, 3, 9) == position


class Note(tidings.Event, subject="events.note"):
    owner: str


async def test_each_browser_sees_only_what_is_visible_to_it() -> None:
    """`visible` decides for each request; an event it fails on, or that is no such event, is shown to nobody."""
    bus = tidings.Bus("notes", url="memory:")

    def visible(message: tidings.Message, request: Request) -> bool:
        assert message.data.owner != "nobody"
        return bool(message.data.owner == request.query_params["user"])

    app = Starlette(routes=[Route("/push", bus.push(Note, visible=visible))])
    async with (
        TestBus(bus),
        served(app) as url,
        httpx.AsyncClient(base_url=url, params={"user": "ada"}) as client,
        pushed(client) as stream,
    ):
        assert (await stream.next()).name == "ready"
        for owner in ("bob", "nobody", "ada"):
            await bus.publish(Note(owner=owner))
        await bus.publish("events.note", {"owner": 5})
        await bus.publish(Note(owner="ada"))
        events = [await stream.next(), await stream.next()]
    assert [event.data["data"] for event in events] == [{"owner": "ada"}] * 2
