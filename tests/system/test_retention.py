"""Retention and space on a real nats-server: bodies too large to copy, limits of every kind, a whole application."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import tidings
from nats_server import NatsServer
from on_nats import take, until
from tidings import claims, embedded
from tidings.claims import Wish
from tidings.clock import SystemClock
from tidings.embedded import BrokerSettings
from tidings.engine import Claim, Dead, Done, Failure, Group, Outgoing, RetryAfter, Space
from tidings.engines.nats import Address, NatsEngine
from tidings.engines.nats.api import JetStream
from tidings.engines.nats.housekeeping import tidy
from tidings.engines.nats.layout import Layout
from tidings.errors import ConfigError, StoreFull
from tidings.retention import Janitor
from tidings.settings import Settings
from tidings.watching.hub import Hub

pytest_plugins = ("on_nats",)

FAILURE = Failure("ValueError", "not today")
LAYOUT = Layout("tidings", ("events.>",))
DAY = 86400.0
EVERYTHING = ("events.>", 1, 1_000_000)
numbers = itertools.count()


@pytest.fixture
async def engine(server: NatsServer) -> AsyncIterator[NatsEngine]:
    engine = NatsEngine(server.locate)
    await engine.open()
    yield engine
    await engine.close()


def event(body: bytes = b"{}", subject: str = "events.a") -> Outgoing:
    return Outgoing(subject, body, {}, f"id-{next(numbers)}")


def group(*filters: str) -> Group:
    return Group("g", tuple(Claim(filter) for filter in filters or ("events.>",)))


async def purged(engine: NatsEngine, *left: int) -> None:
    """A purge of everything leaves these positions, as soon as the acknowledgements count."""

    async def so() -> bool:
        await engine.purge(*EVERYTHING)
        return [entry.position for entry in await engine.read(["events.>"], 0, 100)] == list(left)

    await until(so)


async def test_a_body_too_large_to_copy_stays_with_its_dead_letter(engine: NatsEngine, js: JetStream) -> None:
    """A foreign message as large as the server takes dies, is purged around, redriven, dies again and comes back whole;
    when it is handled at last, it goes too."""
    await engine.declare([group()])
    large = b"x" * (js.link.max_payload - 100)
    await engine.publish([event(), event()])
    await js.store("events.a", large, {})
    await engine.publish([event(), event()])
    deliveries = await take(engine, 5)
    dead = deliveries.pop(2)
    await engine.settle([*map(Done, deliveries), Dead(dead, "rejected", FAILURE)])
    await purged(engine, 3)
    for _ in range(2):
        [letter] = await engine.dead_letters()
        assert letter.entry.body == large
        assert await engine.redrive([letter]) == 1
        [again] = await take(engine, 1)
        assert again.entry.body == large
        await tidy(js, LAYOUT, SystemClock(), -1.0)
        assert await js.subjects(LAYOUT.control, LAYOUT.reference("*", "*")), "the mark is in use"
        await engine.settle([Dead(again, "rejected", FAILURE)])
        await purged(engine, 3)
    assert await engine.redrive(await engine.dead_letters()) == 1
    await engine.settle([Done(delivery) for delivery in await take(engine, 1)])

    async def unmarked() -> bool:
        await tidy(js, LAYOUT, SystemClock(), -1.0)
        return not await js.subjects(LAYOUT.control, LAYOUT.reference("*", "*"))

    await until(unmarked)
    await purged(engine)


async def test_unclaimed_entries_survive_on_a_busy_subject(engine: NatsEngine) -> None:
    """Where the same subject holds unclaimed entries below, what is handled goes one by one, thousands in seconds."""
    await engine.publish([event(b"early") for _ in range(3)])
    await claims.declare(engine, [Wish("g", ("events.>",), "latest")], lease=30.0)
    for _ in range(4):
        await engine.publish([event(subject=f"events.{name}") for name in "ab" for _ in range(250)])
    for _ in range(4):
        await engine.settle([Done(delivery) for delivery in await take(engine, 500)])
    keeper = Janitor(engine, [], Settings(), clock=SystemClock())
    began = time.monotonic()

    async def handled_went() -> bool:
        await keeper.run_once(time.time() + 8 * DAY)
        return (await engine.stats()).messages == 3

    await until(handled_went)
    assert time.monotonic() - began < 15
    assert [entry.body for entry in await engine.read(["events.>"], 0, 10)] == [b"early"] * 3


async def test_attempts_of_finished_messages_are_forgotten(engine: NatsEngine, js: JetStream) -> None:
    """What a worker that died left in the attempt register of a finished message goes, and nothing else of it."""
    await engine.declare([group()])
    await engine.publish([event(), event()])
    first, second = await take(engine, 2)
    await engine.settle([RetryAfter(first, 0.0, FAILURE), RetryAfter(second, 60.0, FAILURE)])
    [again] = await take(engine, 1)
    again.attempts = 0  # as if it had been finished by one that died before it could clear the register
    await engine.settle([Done(again)])
    assert len(await js.subjects(LAYOUT.control, LAYOUT.attempts("g", "*"))) == 2
    assert await tidy(js, LAYOUT, SystemClock()) == 0, "too young"

    async def forgotten() -> bool:
        await tidy(js, LAYOUT, SystemClock(), -1.0)
        return list(await js.subjects(LAYOUT.control, LAYOUT.attempts("g", "*"))) == [LAYOUT.attempts("g", 2)]

    await until(forgotten)


async def test_the_accounts_limit_counts(tmp_path: Path) -> None:
    """On a server with a limit on the account, as the embedded broker has, publishers of every process stop at 90 %,
    failing and dead-lettering go on, and a later purge lets them in again."""
    login = {"user": "a", "password": "b"}
    accounts = {"SYS": {"users": []}, "A": {"jetstream": {"max_file": 3_000_000, "max_mem": 1000}, "users": [login]}}
    server = NatsServer(tmp_path / "small", accounts=accounts, system_account="SYS")
    await server.start()

    async def locate() -> Address:
        return Address((server.url,), "a", "b")

    engine, other = NatsEngine(locate), NatsEngine(locate)
    try:
        await engine.open()
        await engine.declare([group()])
        count = await _fill(engine)
        assert 24 <= count <= 27
        space = await engine.space()
        assert (space.limit, space.takes(100_000)) == (3_000_000, False)
        await other.open()
        with pytest.raises(StoreFull, match="kept for dead letters"):
            await other.publish([event(b"x" * 100_000)])
        first, second, *_ = await take(engine, 3)
        await engine.settle([Dead(first, "rejected", FAILURE), RetryAfter(second, 0.0, FAILURE)])
        assert await engine.redrive(await engine.dead_letters()) == 1
        await engine.forget("g")
        assert await engine.purge("events.>", 1, 15) == 14

        async def let_in() -> bool:
            try:
                await other.publish([event(b"x" * 100_000)])
            except StoreFull:
                return False
            return True

        await until(let_in)
    finally:
        await other.close()
        await engine.close()
        server.kill()


async def _fill(engine: NatsEngine) -> int:
    for count in range(100):
        try:
            await engine.publish([event(b"x" * 100_000)])
        except StoreFull:
            return count
    raise AssertionError("it never was full")


async def test_the_embedded_broker_tells_its_limit(tmp_path: Path) -> None:
    """A client of the embedded broker knows how much it may store, and a publisher is refused before it is full."""
    broker = await embedded.start(tmp_path / "broker", settings=BrokerSettings(max_file_store=2_000_000))
    try:
        bus = tidings.Bus("todo", url=f"embedded:{tmp_path / 'broker'}")
        async with bus:
            assert (await bus.engine.space()).limit == 2_000_000
            events = ("events.a", {"pad": "x" * 60_000})
            for _ in range(28):
                await bus.publish(*events)
            with pytest.raises(StoreFull):
                await asyncio.gather(*(bus.publish(*events) for _ in range(4)))
            # The server adds some bytes to each message, which are known with its next answer only.
            assert 0.8 < (await bus.engine.space()).share < 0.95
    finally:
        await broker.close()


async def test_an_application_sweeps_its_log_and_its_browsers_know(tmp_path: Path) -> None:
    """In a running worker the janitor lets handled events go; a browser that comes back from before that is told, one
    that saw them all goes on."""
    bus = tidings.Bus("todo", url=f"embedded:{tmp_path / 'broker'}")
    seen = asyncio.Semaphore(0)

    @bus.on("events.a", group="save")
    async def save(message: tidings.Message[Any]) -> None:
        seen.release()

    async with bus:
        await bus.work()
        for _ in range(5):
            await bus.publish("events.a", {})
            await seen.acquire()
        running = bus.connected
        assert running is not None
        assert running.janitor is not None
        keeper = running.janitor

        async def swept() -> bool:
            await keeper.run_once(time.time() + 8 * DAY)
            return (await bus.engine.stats()).messages == 0

        await until(swept)
        await bus.publish("events.b", {})
        hub = Hub(bus.engine, ["events.a"])
        _, oldest = await hub.join()
        await hub.close()
        assert oldest == 5, "the browser that has seen 5 goes on, the one that has seen 4 is reset"
        assert (await bus.engine.space()).limit > 0


async def test_another_layout_is_refused(engine: NatsEngine, server: NatsServer) -> None:
    """A namespace that another version wrote is left alone by every process that would connect to it."""
    await engine.register("claims", b'{"layout": 2}', 0)
    with pytest.raises(ConfigError, match=r"another version of Tidings \(layout 2, this one knows 1\)"):
        await tidings.Bus("todo", url=f"nats://127.0.0.1:{server.port}").connect()
    assert (await engine.stats()).groups == {}


async def test_without_a_limit_there_is_always_room(engine: NatsEngine) -> None:
    """An account without limits has none to tell, and nobody is refused."""
    await engine.publish([event()])
    space = await engine.space()
    assert (space.limit, space.share, space.takes(10**12)) == (-1, 0.0, True)
    assert Space(91, 100).takes(0) is False
