"""What travels together, and every way in which a batch is taken apart: on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from nats_server import NatsServer
from tidings.conformance.proxy import Proxy
from tidings.engine import Entry, Outgoing, Stored
from tidings.engines.nats import Address, NatsEngine, sending
from tidings.engines.nats.api import JetStream
from tidings.engines.nats.calls import Item
from tidings.engines.nats.layout import Layout
from tidings.engines.nats.link import Denied, Link
from tidings.engines.nats.outbound import lines_of
from tidings.engines.nats.pace import FEW, Pace
from tidings.engines.nats.sending import LARGEST, Sender
from tidings.errors import EngineUnavailable, StoreFull

pytest_plugins = ("on_nats",)

LAYOUT = Layout("tidings", ("events.>",))
BATCH, SEQUENCE, COMMIT = "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"
Start = Callable[..., Awaitable[NatsEngine]]


@pytest.fixture
async def start(server: NatsServer) -> AsyncIterator[Start]:
    """Open engines that are told that the server fsyncs, and close them after the test."""
    engines: list[NatsEngine] = []

    async def start(**options: object) -> NatsEngine:
        engine = NatsEngine(server.locate, **({"fsyncs": True} | options))  # type: ignore[arg-type]
        engines.append(engine)
        await engine.open()
        return engine

    yield start
    for engine in engines:
        await engine.close()


def event(id: int | str, body: bytes = b"{}", subject: str = "events.a", not_before: float | None = None) -> Outgoing:
    return Outgoing(subject, body, {"ce-id": str(id)}, str(id), not_before)


async def at_once(engine: NatsEngine, messages: Sequence[Outgoing]) -> list[Stored]:
    """One caller for each message."""
    return [stored for [stored] in await asyncio.gather(*(engine.publish([message]) for message in messages))]


async def batches(js: JetStream) -> list[str]:
    """For each stored event, the number of its batch or ""."""
    found: list[str] = []
    async for page in js.pages(LAYOUT.events, "events.>", 1):
        found += [frame.header(BATCH) for frame in page]
    return found


async def log_of(engine: NatsEngine) -> list[Entry]:
    return await engine.read(["events.>"], 0, 5000)


async def test_few_go_one_by_one_and_many_as_a_batch(start: Start, js: JetStream) -> None:
    """Up to sixteen that wait are single messages; of more the first goes alone and the rest is one batch."""
    engine = await start()
    await at_once(engine, [event(f"few-{n}") for n in range(FEW)])
    assert await batches(js) == [""] * FEW
    stored = await at_once(engine, [event(f"many-{n}") for n in range(100)])
    of = (await batches(js))[FEW:]
    assert of[0] == ""
    assert len(set(of[1:])) == 1
    assert of[1]
    assert [place.position for place in stored] == list(range(FEW + 1, FEW + 101))


async def test_large_calls_are_batches_of_a_thousand(start: Start, js: JetStream) -> None:
    """The server takes a thousand in a batch: a call with more becomes several, one after the other."""
    engine = await start()
    stored = await engine.publish([event(n) for n in range(2 * LARGEST + 5)])
    assert [place.position for place in stored] == list(range(1, 2 * LARGEST + 6))
    of = await batches(js)
    assert [of.count(name) for name in dict.fromkeys(of)] == [LARGEST, LARGEST, 5]


async def test_no_batch_where_nothing_is_fsynced(start: Start, js: JetStream) -> None:
    """Told that the server writes to the disk later, the engine never makes a batch."""
    engine = await start(fsyncs=False)
    await at_once(engine, [event(n) for n in range(1500)])
    await engine.publish([event(f"many-{n}") for n in range(1500)])
    assert set(await batches(js)) == {""}


async def test_a_known_id_takes_a_batch_apart(start: Start, js: JetStream) -> None:
    """10201: a batch with a known id is stored one by one, in its order; the known one is told its old place."""
    engine = await start()
    await engine.publish([event("known")])
    wanted = [event("known" if n == 70 else n) for n in range(100)]
    stored = await engine.publish(wanted)
    assert (stored[70].position, stored[70].duplicate) == (1, True)
    rest = [place for n, place in enumerate(stored) if n != 70]
    assert [place.position for place in rest] == list(range(2, 101))
    assert not any(place.duplicate for place in rest)
    assert set(await batches(js)) == {""}


async def test_the_same_id_twice_in_a_batch(start: Start) -> None:
    """Two messages of one identity in one batch are stored once; the same id on another subject is another message."""
    engine = await start()
    messages = [event(n) for n in range(40)] + [event(7), event(7, subject="events.b")]
    stored = await engine.publish(messages)
    assert (stored[40].position, stored[40].duplicate) == (stored[7].position, True)
    assert not stored[41].duplicate
    assert len(await log_of(engine)) == 41


async def test_too_many_open_batches(start: Start, link: Link, js: JetStream) -> None:
    """10210, told as 10176: while others hold all the batches that a stream may have open, messages go one by one."""
    engine = await start()
    for number in range(50):
        await link.publish("events.held", b"{}", {BATCH: f"held{number}", SEQUENCE: "1"})
    await link.flush()
    stored = await at_once(engine, [event(n) for n in range(60)])
    assert [place.position for place in stored] == list(range(1, 61))
    assert set(await batches(js)) == {""}


@pytest.mark.parametrize("subject", ["events.a", "events.b"])
async def test_a_condition_that_fails_is_one_callers_own(start: Start, link: Link, subject: str) -> None:
    """10071, or 10164 where the batch writes to the same subject: the batch is refused for one message's sake, and then
    only this one is."""
    engine = await start()
    await engine.publish([event("there")])
    sender = Sender(JetStream(link, 10.0), LAYOUT, Pace(True))
    good = [event(n) for n in range(30)]
    bad = Outgoing(subject, b"{}", {"Nats-Expected-Last-Subject-Sequence": "99"}, "bad")
    calls = [sender.send([Item(message, lines_of(message.headers))]) for message in [*good[:15], bad, *good[15:]]]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(refused) == 1
    assert refused[0] is answers[15]
    assert "10071" in str(refused[0])
    assert len(await log_of(engine)) == 31


async def test_a_full_store_takes_what_fits(start: Start, js: JetStream) -> None:
    """A batch that does not fit as a whole is tried one by one: those that fit are stored, the others are told."""
    engine = await start()
    await engine.publish([event("first", b"x" * 1000)])
    config = (await js.stream(LAYOUT.events))["config"]
    await js.call(f"STREAM.UPDATE.{LAYOUT.events}", config | {"max_bytes": 60_000})
    messages = [event(n, b"x" * 1000) for n in range(100)]
    answers = await asyncio.gather(*(engine.publish([each]) for each in messages), return_exceptions=True)
    stored = [answer for answer in answers if isinstance(answer, list)]
    assert 10 < len(stored) < 90
    assert all(isinstance(answer, list | StoreFull) for answer in answers)
    assert len(await log_of(engine)) == 1 + len(stored)


async def test_what_one_may_not_publish_harms_no_other(tmp_path: Path) -> None:
    """A user without the right to one subject is told so for its messages, and for those that are to wait when it may
    not let any wait; those beside them are stored."""
    denied = ["events.secret", LAYOUT.every_schedule]
    users = [
        {"user": "all", "password": "p"},
        {"user": "some", "password": "p", "permissions": {"publish": {"deny": denied}}},
    ]
    server = NatsServer(tmp_path / "guarded", authorization={"users": users})
    await server.start()

    def engine(user: str) -> NatsEngine:
        async def locate() -> Address:
            return Address((server.url,), user, "p")

        return NatsEngine(locate, timeout=3.0, fsyncs=True)

    owner, guest = engine("all"), engine("some")
    try:
        await owner.open()
        await guest.open()
        messages = [event(n, subject="events.secret" if n in (0, 20, 59) else "events.a") for n in range(60)]
        answers = await asyncio.gather(*(guest.publish([each]) for each in messages), return_exceptions=True)
        assert [n for n, answer in enumerate(answers) if isinstance(answer, Denied)] == [0, 20, 59]
        assert sum(isinstance(answer, list) for answer in answers) == 57
        assert len(await log_of(owner)) == 57
        with pytest.raises(Denied):
            await guest.publish([event("later", not_before=guest._clock.time() + 60)])
    finally:
        await owner.close()
        await guest.close()
        server.kill()


async def test_delayed_ones_among_many(start: Start) -> None:
    """Messages for later go to another stream: they leave beside the batch, and come at their time."""
    engine = await start()
    due = engine._clock.time() + 1.0
    messages = [event(n, not_before=due if n % 10 == 5 else None) for n in range(60)]
    stored = await at_once(engine, messages)
    assert [n for n, place in enumerate(stored) if not place.position] == [5, 15, 25, 35, 45, 55]
    assert len(await engine.delayed(100)) == 6
    async with asyncio.timeout(30):
        while len(await log_of(engine)) < 60:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fsyncs", [True, False])
async def test_a_large_call_lets_others_pass(start: Start, fsyncs: bool) -> None:
    """A call of many thousands takes turns with single ones: they do not wait for its end. Its own order stands."""
    engine = await start(fsyncs=fsyncs, timeout=60.0)
    large = asyncio.create_task(engine.publish([event(n) for n in range(5 * LARGEST)]))
    await asyncio.sleep(0)
    [small] = await engine.publish([event("small")])
    assert small.position <= 3 * LARGEST
    positions = [place.position for place in await large]
    assert positions == sorted(positions)
    assert len(set(positions)) == 5 * LARGEST


async def test_what_is_under_way_is_bounded(server: NatsServer) -> None:
    """However many publish at once, a few megabytes at most are written ahead of a server that does not read; when it
    reads again all are stored."""
    engine = NatsEngine(server.locate, timeout=40.0, fsyncs=False)
    await engine.open()
    try:
        await engine.publish([event("first")])
        server.freeze()
        messages = [event(n, b"x" * 20_000) for n in range(600)]  # 12 MB
        calls = [asyncio.create_task(engine.publish([message])) for message in messages]
        await asyncio.sleep(0.1)
        connection = engine._link._connection
        assert connection is not None
        assert connection.waiting <= sending._BYTES + 100_000
        assert engine._publisher._sender._bytes <= sending._BYTES + 25_000
        server.thaw()
        stored = [place.position for [place] in await asyncio.gather(*calls)]
        assert stored == list(range(2, 602))
    finally:
        await engine.close()


async def test_a_cancelled_call_is_not_sent_any_more(server: NatsServer) -> None:
    """What still waits for its turn when its caller goes away is never sent; those behind it are."""
    engine = NatsEngine(server.locate, timeout=40.0, fsyncs=False)
    await engine.open()
    try:
        await engine.publish([event("first")])
        server.freeze()
        under_way = [asyncio.create_task(engine.publish([event(n, b"x" * 900_000)])) for n in range(5)]
        await asyncio.sleep(0)
        gone = [asyncio.create_task(engine.publish([event(f"gone-{n}")])) for n in range(20)]
        staying = asyncio.create_task(engine.publish([event("last")]))
        await asyncio.sleep(0.02)
        for call in gone:
            call.cancel()
        server.thaw()
        await asyncio.gather(*under_way, staying)
        assert [entry.headers["ce-id"] for entry in await log_of(engine)] == ["first", *"01234", "last"]
    finally:
        await engine.close()


async def test_nobody_comes_back(start: Start, server: NatsServer) -> None:
    """Calls that were never sent are `EngineUnavailable` with the reason when their time is over, and leave nothing."""
    engine = await start(timeout=1.0)
    await engine.publish([event("first")])
    server.kill()
    async with asyncio.timeout(10):
        while engine._link.connected:
            await asyncio.sleep(0.01)
    answers = await asyncio.gather(*(engine.publish([event(n)]) for n in range(50)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {EngineUnavailable}
    assert all("no NATS server can be used" in str(answer) for answer in answers)
    await server.start()
    await at_once(engine, [event("again")])
    assert [entry.headers["ce-id"] for entry in await log_of(engine)] == ["first", "again"]


async def test_a_clusters_lost_answer_is_missed_soon(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several servers are between, an answer may be lost with one of them while the connection stands: it is
    asked for again after seconds, however patient the caller is."""

    async def locate() -> Address:
        return Address((f"nats://127.0.0.1:{proxy.port}",))

    monkeypatch.setattr(Link, "alone", False)  # all that is asked here of a cluster
    engine = NatsEngine(locate, timeout=40.0)
    await engine.open()
    try:
        proxy.lose_receipt()
        async with asyncio.timeout(10.0):
            [stored] = await engine.publish([event("once")])
        assert (proxy.lost, stored.position, stored.duplicate) == (1, 1, True)
    finally:
        await engine.close()
