"""What the memory engine adds to the contract: quiet, limits, windows, and speed with much waiting."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any

import pytest

from tidings.clock import ManualClock
from tidings.conformance.steps import heard
from tidings.engine import (
    Claim,
    Delivery,
    Done,
    Failure,
    Group,
    Headers,
    Lagged,
    Outgoing,
    Release,
    Reply,
    RetryAfter,
    Signal,
)
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.errors import Closed, NoResponder, StoreFull

FAILURE = Failure("ValueError", "no")


class Scene:
    """A store on a clock that stands still, with one open connection and the group `g`."""

    def __init__(self, *, limit: int = -1, room: int = 10_000) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock, limit=limit, window=60.0, room=room)
        self.engine = MemoryEngine(self.store, name="one")
        self._numbers = iter(range(1_000_000))

    def quiet(self) -> bool:
        return self.store.quiet

    async def open(self, *filters: str) -> MemoryEngine:
        await self.engine.open()
        claims = tuple(Claim(filter) for filter in filters or ("events.>",))
        await self.engine.declare([Group("g", claims, lease=30.0)])
        return self.engine

    async def publish(self, size: int = 1, *, subject: str = "events.a", id: str | None = None) -> int:
        message = Outgoing(subject, b"x" * size, {}, id or f"id-{next(self._numbers)}")
        [stored] = await self.engine.publish([message])
        return stored.position

    async def handle(self, count: int = 1) -> None:
        await self.engine.settle([Done(delivery) for delivery in await self.take(count)])

    async def take(self, count: int = 1) -> list[Delivery]:
        deliveries = await self.engine.pull("g", count, 0.0)
        assert len(deliveries) == count
        return deliveries


async def test_quiet_follows_what_is_ready_and_leased() -> None:
    """The store is quiet when nothing is ready, leased or asked; what waits for its time does not disturb it."""
    scene = Scene()
    engine = await scene.open()
    assert scene.quiet()
    await scene.publish()
    assert not scene.quiet()
    [delivery] = await scene.take()
    assert not scene.quiet()
    await engine.settle([RetryAfter(delivery, 5.0, FAILURE)])
    assert scene.quiet()
    await scene.clock.advance(5)
    assert not scene.quiet()
    await scene.handle()
    assert scene.quiet()


async def test_a_paused_group_is_quiet_unless_something_is_leased() -> None:
    """What waits for a paused group disturbs nothing; what it holds does."""
    scene = Scene()
    engine = await scene.open()
    await scene.publish()
    await scene.publish()
    [held] = await scene.take()
    await engine.declare([Group("g", (), lease=30.0, paused=True)])
    assert not scene.quiet()
    await engine.settle([Release(held)])
    assert scene.quiet()


async def test_a_waiting_request_is_not_quiet() -> None:
    """From the question to the answer the store is not quiet."""
    scene = Scene()
    engine = await scene.open()
    answer = asyncio.Event()

    async def respond(subject: str, body: bytes, headers: Headers) -> Reply:
        await answer.wait()
        return Reply(b"yes", {})

    async with engine.serve("ask", "g", respond):
        asking = asyncio.create_task(engine.request("ask", b"", {}, 10.0))
        await scene.store.changed()
        assert not scene.quiet()
        answer.set()
        await scene.store.changed()
        assert scene.quiet()
        assert (await asking).body == b"yes"


async def test_waiting_for_changes_ends_when_all_is_handled() -> None:
    """`while not quiet: await changed()` waits exactly as long as there is work, without a clock."""
    scene = Scene()
    await scene.open()
    for _ in range(20):
        await scene.publish()

    async def work() -> None:
        while True:
            deliveries = await scene.engine.pull("g", 3, 1000.0)
            await asyncio.sleep(0)
            await scene.engine.settle([Done(delivery) for delivery in deliveries])

    worker = asyncio.create_task(work())
    while not scene.quiet():
        await scene.store.changed()
    assert (await scene.engine.stats()).groups["g"].waiting == 0
    worker.cancel()
    await asyncio.wait({worker})


async def test_pulling_counts_those_who_wait() -> None:
    """`stats` counts a waiting pull while it waits and no longer, cancelled or answered."""
    scene = Scene()
    engine = await scene.open()
    waiting = [asyncio.create_task(engine.pull("g", 1, 100.0)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (await engine.stats()).groups["g"].pulling == 2
    waiting[0].cancel()
    await asyncio.wait({waiting[0]})
    assert (await engine.stats()).groups["g"].pulling == 1
    await scene.publish()
    assert len(await waiting[1]) == 1
    assert (await engine.stats()).groups["g"].pulling == 0


async def test_an_empty_log_says_where_it_would_go_on() -> None:
    """When all is purged, `first` is the next position and positions go on rising."""
    scene = Scene()
    engine = await scene.open()
    await scene.publish()
    await scene.handle()
    assert await engine.purge("events.>", 1, 100) == 1
    stats = await engine.stats()
    assert (stats.messages, stats.bytes, stats.first, stats.last) == (0, 0, 2, 1)
    assert await scene.publish() == 2


async def test_a_store_full_of_unhandled_messages_refuses_more() -> None:
    """Publishers get `StoreFull` with what to do; nothing is lost, and a purge of what is handled makes room again."""
    scene = Scene(limit=10_000)
    engine = await scene.open()
    for number in range(8):
        await scene.publish(1000, id=f"n{number}")
    with pytest.raises(StoreFull, match="start workers"):
        await scene.publish(1000)
    assert len(await engine.read(["events.>"], 0, 20)) == 8
    assert await scene.publish(1000, id="n7") == 8, "a repeat of what is stored needs no room"
    await scene.handle()
    assert await engine.purge("events.>", 1, 100) == 1
    assert await scene.publish(1000) == 9


async def test_the_dedupe_window_ends() -> None:
    """The same id is stored again when its window is over, and not before."""
    scene = Scene()
    await scene.open()
    first = await scene.publish(id="x")
    await scene.clock.advance(59)
    assert await scene.publish(id="x") == first
    await scene.clock.advance(2)
    assert await scene.publish(id="x") == first + 1


async def test_a_scheduled_message_is_known_until_it_is_stored() -> None:
    """A repeat of a message that waits for its time is a duplicate, however long it waits."""
    scene = Scene()
    engine = await scene.open()
    later = Outgoing("events.a", b"", {}, "later", not_before=scene.clock.time() + 1000)
    assert [(s.position, s.duplicate) for s in await engine.publish([later, later])] == [(0, False), (0, True)]
    await scene.clock.advance(900)
    assert (await engine.publish([later]))[0].duplicate
    assert scene.quiet()
    await scene.clock.advance(100)
    assert len(await engine.read(["events.a"], 0, 10)) == 1


async def test_a_listener_too_far_behind_misses_the_oldest() -> None:
    """A full listener keeps the newest signals, and is told how many it missed each time."""
    scene = Scene(room=2)
    engine = await scene.open()
    async with engine.listen(["live.>"]) as signals:
        for _ in (1, 2):
            assert [await engine.broadcast("live.a", bytes([n]), {}) for n in range(5)] == [1] * 5
            assert await anext(signals) == Lagged(3)
            assert [(await heard(signals)).body for _ in range(2)] == [b"\3", b"\4"]


async def test_leaving_a_listener_ends_its_iteration() -> None:
    """Who still iterates after the context was left gets what was heard and then the end."""
    scene = Scene()
    engine = await scene.open()
    async with engine.listen(["live.a"]) as signals:
        await engine.broadcast("live.a", b"last", {})
    assert [signal async for signal in signals] == [Signal("live.a", b"last", {})]


async def test_an_abandoned_engine_is_closed_and_holds_its_leases() -> None:
    """After `abandon` the connection is unusable, its responders are gone, and its leases run to their end."""
    scene = Scene()
    engine = await scene.open()
    other = MemoryEngine(scene.store, name="other")
    await other.open()
    await scene.publish()
    await scene.take()
    serving = asyncio.Event()

    async def serve() -> None:
        async with engine.serve("ask", "g", _never):
            serving.set()
            await asyncio.Event().wait()

    server = asyncio.create_task(serve())
    await serving.wait()
    asking = asyncio.create_task(other.request("ask", b"", {}, 5.0))
    await scene.store.changed()
    engine.abandon()

    with pytest.raises(Closed):
        await engine.stats()
    with pytest.raises(NoResponder):
        await other.request("ask", b"", {}, 5.0)
    assert await other.pull("g", 1, 0.0) == []
    await scene.clock.advance(5)
    await asyncio.wait({asking})
    assert type(asking.exception()).__name__ == "RequestTimeout"
    await scene.clock.advance(25)
    assert [delivery.deliveries for delivery in await other.pull("g", 1, 0.0)] == [2]
    server.cancel()
    await asyncio.wait({server})


async def test_a_lease_that_nobody_took_over_can_still_be_settled() -> None:
    """Late but alone: the work is not thrown away as long as nobody else has the message."""
    scene = Scene()
    engine = await scene.open()
    await scene.publish()
    [delivery] = await scene.take()
    await scene.clock.advance(31)
    await engine.settle([Done(delivery)])
    assert await engine.pull("g", 1, 0.0) == []
    assert scene.quiet()


async def test_a_late_retry_waits_for_its_delay() -> None:
    """A retry said after the lease, before anybody took the message, takes it out of those that are ready."""
    scene = Scene()
    engine = await scene.open()
    await scene.publish()
    [delivery] = await scene.take()
    await scene.clock.advance(31)
    await engine.settle([RetryAfter(delivery, 10.0, FAILURE)])
    assert await engine.pull("g", 1, 0.0) == []
    await scene.clock.advance(10)
    assert [again.attempts for again in await scene.take()] == [1]
    assert await engine.pull("g", 1, 0.0) == []


async def test_a_responder_that_raises_is_logged_and_the_asker_times_out(caplog: pytest.LogCaptureFixture) -> None:
    """As over a network nobody learns of it but the log."""
    scene = Scene()
    engine = await scene.open()

    async def respond(subject: str, body: bytes, headers: Headers) -> Reply:
        raise ValueError("broken responder")

    async with engine.serve("ask", "g", respond):
        asking = asyncio.create_task(engine.request("ask", b"", {}, 5.0))
        await scene.store.changed()
        await scene.clock.advance(6)
        await asyncio.wait({asking})
    assert type(asking.exception()).__name__ == "RequestTimeout"
    assert "broken responder" in caplog.text


async def test_leaving_serve_finishes_what_was_begun() -> None:
    """The answers begun before leaving are given; cancelling the leaving gives them up."""
    scene = Scene()
    engine = await scene.open()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def respond(subject: str, body: bytes, headers: Headers) -> Reply:
        begun.set()
        await go_on.wait()
        return Reply(b"finished", {})

    async def serve() -> None:
        async with engine.serve("ask", "g", respond):
            await begun.wait()

    server = asyncio.create_task(serve())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking = asyncio.create_task(engine.request("ask", b"", {}, 5.0))
    await begun.wait()
    await asyncio.sleep(0)
    assert not server.done()
    go_on.set()
    await server
    assert (await asking).body == b"finished"


async def test_much_waiting_makes_a_pull_no_slower() -> None:
    """Taking ten of 20,000 runs as many lines as taking ten of twenty."""
    assert await _lines_of_a_pull(waiting=20_000) == await _lines_of_a_pull(waiting=20)


async def _lines_of_a_pull(*, waiting: int) -> int:
    scene = Scene()
    engine = await scene.open()
    await engine.publish([Outgoing("events.a", b"", {}, str(n)) for n in range(waiting)])
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if "tidings" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await scene.take(10)
    finally:
        sys.settrace(before)
    assert lines > 10
    return lines


async def _never(subject: str, body: bytes, headers: Headers) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError
