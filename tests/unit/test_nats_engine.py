"""The NATS engine beyond the conformance suite: real servers, killed, moved, full, forbidding."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nats_server import NatsServer
from on_nats import take, until
from tidings.clock import ManualClock, SystemClock
from tidings.conformance.steps import heard
from tidings.engine import Claim, Dead, Delivery, Done, Failure, Group, Outgoing, Reply, RetryAfter
from tidings.engines.nats import Address, NatsEngine, lock
from tidings.engines.nats.api import JetStream
from tidings.engines.nats.connection import CoreConnection, OnDenied, OnLost, connect_nats_py
from tidings.engines.nats.housekeeping import tidy
from tidings.engines.nats.layout import Layout
from tidings.engines.nats.link import Denied, Link
from tidings.errors import ConfigError, Conflict, EngineUnavailable, StoreFull, TooLarge, Unconfirmed

pytest_plugins = ("on_nats",)

FAILURE = Failure("ValueError", "not today")
LAYOUT = Layout("tidings", ("events.>",))
Start = Callable[..., Awaitable[NatsEngine]]


@pytest.fixture
async def start(server: NatsServer) -> AsyncIterator[Start]:
    """Open engines, and close them after the test."""
    engines: list[NatsEngine] = []

    async def start(**options: object) -> NatsEngine:
        engine = NatsEngine(options.pop("locate", server.locate), **options)  # type: ignore[arg-type]
        engines.append(engine)
        await engine.open()
        return engine

    yield start
    for engine in engines:
        await engine.close()


def event(id: int | str, body: bytes = b"{}", subject: str = "events.a", not_before: float | None = None) -> Outgoing:
    return Outgoing(subject, body, {"ce-id": str(id)}, str(id), not_before)


def group(*filters: str, lease: float = 30.0, paused: bool = False) -> Group:
    return Group("g", tuple(Claim(filter) for filter in filters or ("events.>",)), lease, paused)


async def test_second_namespace_on_the_same_roots(start: Start) -> None:
    """A second namespace that wants the same roots is refused with a sentence that names `roots=`."""
    await start()
    with pytest.raises(ConfigError, match="roots="):
        await start(namespace="other")
    await start(namespace="other", roots=("other.>",))


@pytest.mark.parametrize("count", [3, 10])
async def test_what_is_there_is_asked_for_once(start: Start, count: int) -> None:
    """A pull that does not wait ends at once, also while requests of one that waits are still open."""
    engine = await start()
    await engine.declare([group()])
    await engine.publish([event(number) for number in range(3)])
    taken: list[Delivery] = []
    while len(taken) < 3:
        taken += await engine.pull("g", count, 30.0)
    async with asyncio.timeout(1.5):
        for _ in range(3):
            assert await engine.pull("g", 100, 0.0) == []


async def test_a_pull_that_is_refused_is_repeated_with_pauses(start: Start, js: JetStream) -> None:
    """A server that refuses pulls, here because somebody has limited their size, is asked ever less often, and what is
    there comes once it refuses no more."""
    engine = await start()
    await engine.declare([group()])
    await engine.publish([event(1)])
    config = (await js.call("CONSUMER.INFO.tidings-events.g"))["config"]
    change = {"stream_name": "tidings-events", "action": "update"}
    await js.call("CONSUMER.CREATE.tidings-events.g", {**change, "config": {**config, "max_batch": 1}})
    asked: list[str] = []
    await js.link.subscribe("$JS.API.CONSUMER.MSG.NEXT.tidings-events.g", lambda frame: asked.append(frame.subject))
    await js.link.flush()
    assert await engine.pull("g", 5, 1.0) == []
    assert 1 < len(asked) < 10
    await js.call("CONSUMER.CREATE.tidings-events.g", {**change, "config": config})
    assert len(await take(engine, 1)) == 1


async def test_roots_are_merged(start: Start) -> None:
    """Many processes that add roots at the same time lose none of them, and old ones stay."""
    engines = await asyncio.gather(*(start(roots=(f"r{n}.>",)) for n in range(6)))
    for n, engine in enumerate(engines):
        stored = await engine.publish([event(n, subject=f"r{n}.x")])
        assert stored[0].position > 0


async def test_a_server_without_jetstream_is_named(tmp_path: Path) -> None:
    """Within ten seconds the error says that JetStream is missing, and how to get it."""
    server = NatsServer(tmp_path / "plain", jetstream="disabled")
    await server.start()
    engine = NatsEngine(server.locate)
    try:
        async with asyncio.timeout(10):
            with pytest.raises(EngineUnavailable, match="JetStream does not: start nats-server with `-js`"):
                await engine.open()
    finally:
        await engine.close()
        server.kill()


async def test_nobody_there() -> None:
    """Within ten seconds the error names the address and what to check."""

    async def nowhere() -> Address:
        return Address(("nats://127.0.0.1:9",))

    engine = NatsEngine(nowhere)
    async with asyncio.timeout(10):
        with pytest.raises(EngineUnavailable, match=r"nats://127\.0\.0\.1:9.*is it running"):
            await engine.open()
    await engine.close()


async def test_opening_again_after_a_failure(server: NatsServer) -> None:
    """An engine that could not be opened opens when the server is there."""
    server.kill()
    engine = NatsEngine(server.locate, timeout=0.5)
    with pytest.raises(EngineUnavailable):
        await engine.open()
    await server.start()
    try:
        await engine.open()
        assert (await engine.publish([event(1)]))[0].position == 1
    finally:
        await engine.close()


async def test_a_busy_reader_holds_nothing_back(start: Start) -> None:
    """What was sent ahead to a reader that does not pull any more goes to others, before its lease would be over."""
    busy, other = await start(), await start()
    await busy.declare([group(lease=3.0)])
    await busy.publish([event(n) for n in range(8)])
    held = await take(busy, 4)  # and four more are on their way to it
    rest = await take(other, 4)
    assert len({delivery.entry.position for delivery in held + rest}) == 8
    assert [delivery.attempts for delivery in rest] == [0] * 4


async def test_passwords_need_tls_where_it_was_asked_for(server: NatsServer) -> None:
    """With a tls:// address the password is not sent to a server that offers no TLS."""

    async def locate() -> Address:
        return Address((server.url.replace("nats://", "tls://"),), "user", "secret")

    engine = NatsEngine(locate, timeout=1.0)
    with pytest.raises(EngineUnavailable, match="no TLS"):
        await engine.open()
    await engine.close()


async def test_a_stream_that_loses_messages_is_refused(start: Start, js: JetStream) -> None:
    """Streams that somebody gave a limit that removes unhandled messages are refused with what is wrong."""
    await (await start()).close()
    config = (await js.stream(LAYOUT.control))["config"]
    await js.call(f"STREAM.UPDATE.{LAYOUT.control}", config | {"max_msgs": 10})
    with pytest.raises(EngineUnavailable, match="max_msgs is 10"):
        await start()


RIGHTS = {
    "users": [
        {"user": "work", "password": "w"},
        {
            "user": "publish",
            "password": "p",
            "permissions": {
                "publish": {
                    "deny": [
                        "_t.>",
                        "$JS.ACK.>",
                        *(
                            f"$JS.API.{verb}.>"
                            for verb in (
                                "STREAM.CREATE",
                                "STREAM.UPDATE",
                                "STREAM.PURGE",
                                "STREAM.MSG.DELETE",
                                "STREAM.DELETE",
                                "DIRECT",
                                "CONSUMER.CREATE",
                                "CONSUMER.DELETE",
                                "CONSUMER.PAUSE",
                                "CONSUMER.MSG.NEXT",
                            )
                        ),
                    ]
                },
                "subscribe": {"deny": ["_t.>", "$JS.>"]},
            },
        },
    ]
}


async def test_a_user_who_may_only_publish(tmp_path: Path) -> None:
    """Such a user publishes, reads, asks and counts; creating and changing is refused at once, by name."""
    server = NatsServer(tmp_path / "guarded", authorization=RIGHTS)
    await server.start()

    def engine(user: str, password: str) -> NatsEngine:
        async def locate() -> Address:
            return Address((server.url,), user, password)

        return NatsEngine(locate)

    stranger, early, worker, publisher = (
        engine("work", "?"),
        engine("publish", "p"),
        engine("work", "w"),
        engine("publish", "p"),
    )
    try:
        with pytest.raises(EngineUnavailable, match="Authorization"):
            await stranger.open()
        with pytest.raises(EngineUnavailable, match="start a worker of it once"):
            await early.open()
        await worker.open()
        await publisher.open()
        await worker.declare([group()])
        stored = await publisher.publish([event(1)])
        reading = asyncio.create_task(publisher.read(["events.a", "events.b"], stored[0].position, 5, 20.0))
        await publisher.publish([event(2, subject="events.b")])
        assert [entry.position for entry in await reading] == [2]
        assert (await publisher.stats()).groups["g"].waiting == 2
        assert (await publisher.states((await reading)[0]))["g"].state == "waiting"
        assert await publisher.recall("claims") is None
        with pytest.raises(Denied, match="may not publish"):
            await publisher.register("claims", b"x", 0)
        with pytest.raises(Denied):
            await publisher.declare([Group("other", (Claim("events.>"),))])
        assert len(await publisher.publish([event(3)])) == 1
    finally:
        for one in (stranger, early, worker, publisher):
            await one.close()
        server.kill()


async def test_the_broker_may_move(start: Start, tmp_path: Path) -> None:
    """After a restart on another port the engine asks where the broker is, and everything goes on."""
    server = NatsServer(tmp_path / "moving")
    await server.start()
    engine = NatsEngine(server.locate)
    await engine.open()
    try:
        await engine.declare([group()])
        waiting = asyncio.create_task(engine.pull("g", 1, 30.0))
        server.kill()
        server.port = -1
        await server.start()
        await engine.publish([event(1)])
        assert (await waiting)[0].entry.position == 1
    finally:
        await engine.close()
        server.kill()


async def test_what_the_server_would_hang_up_on_never_reaches_it(start: Start) -> None:
    """Messages above the limits raise, and the connection with all that waits on it stays."""
    engine = await start()
    async with engine.listen(["live.>"]) as signals:
        with pytest.raises(TooLarge):
            await engine.publish([event(1, b"x" * 2_000_000)])
        with pytest.raises(TooLarge):
            await engine.broadcast("live.a", b"x" * 2_000_000, {})
        await engine.broadcast("live.a", b"still here", {})
        assert (await heard(signals)).body == b"still here"


async def test_responder_that_answers_too_much(start: Start) -> None:
    """A reply that the server would hang up on is not sent; the connection serves on."""
    engine = await start()

    async def respond(subject: str, body: bytes, headers: object) -> Reply:
        return Reply(b"x" * 2_000_000 if body == b"much" else b"little", {})

    async with engine.serve("ask.size", "g", respond):
        much = asyncio.create_task(engine.request("ask.size", b"much", {}, 0.5))
        assert (await engine.request("ask.size", b"", {}, 10.0)).body == b"little"
        with pytest.raises(Exception, match="no answer"):
            await much


async def test_largest_message_can_die_and_come_back(start: Start) -> None:
    """A message of exactly the limit, with a long traceback, becomes a dead letter and is put back whole."""
    engine = await start()
    await engine.declare([group()])
    room = engine.max_message - len("events.a") - len("ce-id") - len("1") - 4
    await engine.publish([event(1, b"x" * room)])
    [delivery] = await take(engine, 1)
    await engine.settle([Dead(delivery, "handler_error", Failure("E", "m", "line\n" * 50_000))])
    [letter] = await engine.dead_letters()
    assert letter.entry == delivery.entry
    assert await engine.redrive([letter]) == 1
    assert (await take(engine, 1))[0].entry == delivery.entry


async def test_foreign_giant_can_die_and_come_back(start: Start, js: JetStream) -> None:
    """A foreign message that leaves no room for our header is read from the log instead of being copied."""
    engine = await start()
    await engine.declare([group()])
    await js.link.request("events.a", b"x" * (js.link.max_payload - 100), {"odd": "ä" * 20})
    [delivery] = await take(engine, 1)
    await engine.settle([Dead(delivery, "rejected", FAILURE)])
    [letter] = await engine.dead_letters()
    assert letter.entry == delivery.entry
    assert await engine.redrive([letter]) == 1
    assert (await take(engine, 1))[0].entry == delivery.entry


@pytest.mark.parametrize("again", [False, True])
async def test_a_letter_whose_message_was_put_back_is_no_letter(start: Start, js: JetStream, again: bool) -> None:
    """A server that was killed while it stored a redrive may have the letter once more beside the message that was put
    back: the next redrive removes it, and the group handles the message once. Also for one that had died twice."""
    engine = await start()
    await engine.declare([group()])
    await engine.publish([event(1)])
    for _ in range(1 + again):
        await engine.redrive(await engine.dead_letters())
        await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in await take(engine, 1)])
    [letter] = await engine.dead_letters()
    ghost = await js.message(LAYOUT.control, LAYOUT.dead("g", 1))
    assert await engine.redrive([letter]) == 1
    assert ghost is not None
    ours = {name: value for name, value in (ghost.headers or {}).items() if not name.startswith("Nats-")}
    await js.store(LAYOUT.dead("g", 1), ghost.body, ours)

    found = await engine.dead_letters()
    assert found == [letter]
    assert await engine.redrive(found) == 0
    assert await engine.dead_letters() == []
    await engine.settle([Done(delivery) for delivery in await take(engine, 1)])
    stats = (await engine.stats()).groups["g"]
    assert (stats.waiting, stats.leased, stats.dead) == (0, 0, 0)


async def test_a_publisher_cannot_erase_the_log(start: Start, js: JetStream) -> None:
    """The headers by which a publisher could erase, expire or schedule are refused by the stream itself."""
    engine = await start()
    await engine.publish([event(1)])
    for headers in ({"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}, {"Nats-Schedule": "@every 1s"}):
        answer = await js.link.request("events.a", b"{}", headers)
        assert b'"error"' in answer.body
    assert len(await engine.read(["events.>"], 0, 10)) == 1


async def test_added_claim_gets_the_past_once(start: Start) -> None:
    """A filter added to a live group hands it what is stored exactly once, while publishing and pulling go on."""
    engine, other = await start(), await start()
    await engine.declare([group("events.a")])
    await engine.publish([event(n, subject=f"events.{'ab'[n % 2]}") for n in range(60)])
    seen: list[int] = []

    async def handle() -> None:
        while len(seen) < 120:
            got = await engine.pull("g", 10, 1.0)
            seen.extend(delivery.entry.position for delivery in got)
            await engine.settle([Done(delivery) for delivery in got])

    handling = asyncio.create_task(handle())
    publishing = asyncio.create_task(other.publish([event(n, subject=f"events.{'ab'[n % 2]}") for n in range(60, 120)]))
    await asyncio.gather(*(each.declare([group("events.a", "events.b")]) for each in (other, engine)))
    await publishing
    async with asyncio.timeout(30):
        await handling
    assert await engine.pull("g", 10, 0.7) == []
    assert sorted(seen) == list(range(1, 121))


async def test_claim_half_added_is_completed_by_a_reader(start: Start, js: JetStream) -> None:
    """When a process dies while it adds a claim, the next reader finishes it, and nothing is lost or doubled."""
    engine = await start()
    await engine.declare([group("events.a")])
    await engine.publish([event(n, subject=f"events.{'ab'[n % 2]}") for n in range(10)])
    groups = engine._groups
    shape = await groups._add(group("events.a", "events.b"))  # the first half of `declare`
    assert shape.pending
    reader = await start()
    await reader.publish([event(n, subject="events.b") for n in range(10, 14)])
    got = await take(reader, 14)
    assert sorted(delivery.entry.position for delivery in got) == list(range(1, 15))
    assert await reader.pull("g", 10, 0.7) == []


async def test_group_removed_from_under_a_reader(start: Start, js: JetStream) -> None:
    """A consumer somebody deleted with other tools is made again; a group that was forgotten is not."""
    engine, other = await start(), await start()
    await engine.declare([group()])
    waiting = asyncio.create_task(engine.pull("g", 1, 20.0))
    await until(lambda: _pulling(other))
    await js.delete_consumer(LAYOUT.events, "g")
    await other.publish([event(1)])
    [delivery] = await waiting
    await engine.settle([Done(delivery)])

    waiting = asyncio.create_task(engine.pull("g", 1, 20.0))
    await until(lambda: _pulling(other))
    await other.forget("g")
    with pytest.raises(Conflict):
        await waiting
    assert (await other.stats()).groups == {}


async def _pulling(engine: NatsEngine) -> bool:
    return (await engine.stats()).groups["g"].pulling > 0


async def test_every_message_is_done_or_dead_over_kills(start: Start, server: NatsServer) -> None:
    """With the server killed again and again, each message ends done or in one dead letter, and none is lost."""
    engine = await start()
    await engine.declare([group(lease=3.0)])
    done: set[str] = set()
    sent: set[str] = set()

    async def publish() -> None:
        for n in range(40):
            await engine.publish([event(f"{n}-{k}") for k in range(5)])
            sent.update(f"{n}-{k}" for k in range(5))

    async def handle() -> None:
        while True:
            try:
                got = await engine.pull("g", 20, 1.0)
                outcomes = [_decide(delivery) for delivery in got]
                await engine.settle(outcomes)
            except EngineUnavailable:
                continue
            done.update(o.delivery.entry.headers["ce-id"] for o in outcomes if isinstance(o, Done))

    handling = asyncio.create_task(handle())
    publishing = asyncio.create_task(publish())
    for _ in range(3):
        await asyncio.sleep(0.15)
        await server.restart()
    await publishing

    async def settled() -> bool:
        letters = await engine.dead_letters(limit=1000)
        return sent <= done | {letter.entry.headers["ce-id"] for letter in letters}

    await until(settled)
    handling.cancel()
    letters = await engine.dead_letters(limit=1000)
    assert len(letters) == len({letter.entry.position for letter in letters})
    assert {letter.entry.headers["ce-id"] for letter in letters} == {id for id in sent if id.endswith("-3")}
    assert {letter.attempts for letter in letters} == {2}
    stored = await engine.read(["events.>"], 0, 1000)
    assert len(stored) == len(sent)


def _decide(delivery: Delivery) -> Done | RetryAfter | Dead:
    if not delivery.entry.headers["ce-id"].endswith("-3"):
        return Done(delivery)
    if delivery.attempts == 0:
        return RetryAfter(delivery, 0.05, FAILURE)
    return Dead(delivery, "handler_error", FAILURE)


async def test_dead_letter_stored_twice_is_one(start: Start, server: NatsServer) -> None:
    """A reader that died between storing a dead letter and giving it up leaves one dead letter, however often."""
    engine, other = await start(), await start()
    await engine.declare([group(lease=1.0)])
    await engine.publish([event(1)])
    [delivery] = await take(engine, 1)
    await (await engine._settler._write(Dead(delivery, "handler_error", FAILURE)))  # and then it is gone
    await engine.abandon()
    [again] = await take(other, 1)
    await other.settle([Dead(again, "handler_error", FAILURE)])
    [letter] = await other.dead_letters()
    assert await other.redrive([letter]) == 1
    assert await other.redrive([letter]) == 0
    await other.settle([Done((await take(other, 1))[0])])
    assert await other.pull("g", 5, 1.3) == []
    assert await other.dead_letters() == []


async def test_late_burial_after_a_redrive_is_refused(start: Start) -> None:
    """A holder from before a redrive can neither bury nor retry what is somebody else's now."""
    engine = await start()
    await engine.declare([group()])
    await engine.publish([event(1)])
    [stale] = await take(engine, 1)
    twin = Delivery(stale.entry, "g", 1, 0, stale.deadline, msgspec.structs.replace(stale.token))
    await engine.settle([Dead(stale, "handler_error", FAILURE)])
    assert await engine.redrive(await engine.dead_letters()) == 1
    await engine.settle([Dead(twin, "handler_error", FAILURE)])
    assert await engine.dead_letters() == []
    [moved] = await take(engine, 1)
    assert (moved.entry, moved.attempts) == (stale.entry, 0)


async def test_bulk_redrive_leaves_out_what_is_gone(start: Start) -> None:
    """Of many dead letters, those that somebody else took are left out and all others move."""
    engine = await start()
    await engine.declare([group()])
    await engine.publish([event(n) for n in range(130)])
    await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in await take(engine, 130)])
    letters = await engine.dead_letters(limit=1000)
    assert await engine.discard(letters[::10]) == 13
    assert await engine.redrive(letters) == 117
    assert (await engine.stats()).groups["g"].dead == 0
    assert len(await take(engine, 117)) == 117


async def test_housekeeping(start: Start, js: JetStream) -> None:
    """Copies that have served their purpose go; what somebody still needs stays, and can still be put back."""
    engine, clock = await start(), SystemClock()
    await engine.declare([group()])
    await engine.publish([event(1), event(2), event(3, not_before=clock.time() + 0.3)])
    first, second, third = await take(engine, 3)
    await engine.settle([Dead(d, "rejected", FAILURE) for d in (first, second)] + [Done(third)])
    assert await engine.redrive(await engine.dead_letters()) == 2
    first, second = await take(engine, 2)
    await engine.settle([Dead(first, "rejected", FAILURE)])
    assert await tidy(js, LAYOUT, clock) == 0, "too young"

    async def due_is_gone() -> bool:
        return await tidy(js, LAYOUT, clock, -1.0) > 0

    await until(due_is_gone)
    assert await js.subjects(LAYOUT.control, LAYOUT.due(">")) == {}
    await engine.settle([Done(second)])

    async def inbox_is_gone() -> bool:
        await tidy(js, LAYOUT, clock, -1.0)
        return not await js.subjects(LAYOUT.control, LAYOUT.inbox("*"))

    await until(inbox_is_gone)
    assert await engine.redrive(await engine.dead_letters()) == 1
    assert (await take(engine, 1))[0].entry == first.entry


async def test_full_store(tmp_path: Path) -> None:
    """A full server refuses with `StoreFull`, keeps what it acknowledged, and takes more when there is space."""
    server = NatsServer(tmp_path / "small")
    server._config["jetstream"] = {"store_dir": str(tmp_path / "small" / "data"), "max_file_store": 2_000_000}
    await server.start()
    engine = NatsEngine(server.locate)
    try:
        await engine.open()
        positions: list[int] = []

        async def fill() -> None:
            for n in range(100):
                [stored] = await engine.publish([event(n, b"x" * 100_000)])
                positions.append(stored.position)

        with pytest.raises(StoreFull):
            await fill()
        assert [entry.position for entry in await engine.read(["events.>"], 0, 100)] == positions
        assert len(positions) > 10
        await engine._js.purge(LAYOUT.events, "events.>", 5)
        await engine.publish([event("more", b"x" * 100_000)])
    finally:
        await engine.close()
        server.kill()


async def test_settling_without_a_server(start: Start, server: NatsServer) -> None:
    """While nobody answers, settling raises in time instead of pretending, and works when repeated afterwards."""
    engine = await start(timeout=1.0)
    await engine.declare([group()])
    await engine.publish([event(1)])
    [delivery] = await take(engine, 1)
    server.kill()
    async with asyncio.timeout(5):
        with pytest.raises(EngineUnavailable):
            await engine.settle([Done(delivery)])
        with pytest.raises(EngineUnavailable):
            await engine.pull("g", 1, 0.2)
        with pytest.raises(EngineUnavailable):
            await engine.publish([event(2)])
    await server.start()

    async def settled() -> bool:
        try:
            await engine.settle([Done(delivery)])
        except EngineUnavailable:
            return False
        return True

    await until(settled)
    assert (await engine.stats()).groups["g"].leased == 0


async def test_a_lease_that_ended_while_nobody_answered_is_not_renewed(start: Start, server: NatsServer) -> None:
    """A renewal that had to wait for the server says nothing of a delivery whose lease ended meanwhile: it may be
    somebody else's, whose lease that would be."""
    clock = ManualClock()
    engine = await start(clock=clock)
    await engine.declare([group()])
    await engine.publish([event(1), event(2)])
    [over, kept] = await take(engine, 2)
    server.kill()
    await until(lambda: _is(not engine._js.link.connected))
    kept.deadline += 60
    renewing = asyncio.create_task(engine.extend([over, kept]))
    await asyncio.sleep(0)
    await clock.advance(40)
    await server.start()
    await renewing
    assert over.deadline < clock.monotonic() < kept.deadline


async def _is(value: bool) -> bool:
    return value


async def test_closing_in_the_middle_of_connecting_leaves_no_connection(server: NatsServer) -> None:
    """A connection that has been made, and is not ready yet when all is closed, is closed too; who waited for it hears
    that its server says nothing."""
    made: list[CoreConnection] = []

    async def connect(server_url: str, address: Address, name: str, lost: OnLost, denied: OnDenied) -> CoreConnection:
        made.append(await connect_nats_py(server_url, address, name, lost, denied))
        server.freeze()
        return made[0]

    link = Link(server.locate, connector=connect)
    try:
        with pytest.raises(EngineUnavailable, match=r"nats://\S+ has said nothing yet"):
            await link.open(0.5)
        await link.close()
    finally:
        server.thaw()
    assert [connection.alive for connection in made] == [False]


async def test_a_frozen_server_is_survived(start: Start, server: NatsServer) -> None:
    """A server that is stopped in its tracks raises `Unconfirmed` in time; when it runs again nothing is doubled."""
    engine = await start(timeout=1.0)
    server.freeze()
    try:
        async with asyncio.timeout(5):
            with pytest.raises(Unconfirmed):
                await engine.publish([event(1)])
    finally:
        server.thaw()

    async def stored() -> bool:
        try:
            await engine.publish([event(1)])
        except EngineUnavailable:
            return False
        return True

    await until(stored)
    assert len(await engine.read(["events.>"], 0, 10)) == 1


async def test_sent_and_then_nobody_there_is_unknown(start: Start, server: NatsServer) -> None:
    """A publish that was on its way when the server went for good is `Unconfirmed`: it may be stored. One that was
    never sent is `EngineUnavailable`."""
    engine = await start(timeout=2.0)
    await engine.publish([event(1)])
    server.freeze()
    sent = asyncio.create_task(engine.publish([event(2)]))
    asked = engine._js.link._answers

    async def on_its_way() -> bool:
        return any(subject == "events.a" for subject, _ in asked._expected.values())

    await until(on_its_way)
    server.kill()
    with pytest.raises(Unconfirmed):
        await sent
    with pytest.raises(EngineUnavailable):
        await engine.publish([event(3)])


async def test_explain_names_the_holder(start: Start) -> None:
    """`states` says who holds a message, and admits when it cannot know."""
    engine, other = await start(), await start()
    await engine.declare([group()])
    await engine.publish([event(n) for n in range(3)])
    one, two, three = await take(engine, 3)
    await engine.settle([Done(two), RetryAfter(three, 60.0, FAILURE)])
    states = [(await other.states(delivery.entry))["g"] for delivery in (one, two, three)]
    assert [state.state for state in states] == ["leased", "done", "retrying"]
    assert "for 0 s" in states[0].detail
    assert "not today" in states[2].detail
    stats = (await other.stats()).groups["g"]
    assert (stats.waiting, stats.leased, stats.delayed) == (0, 1, 1)
    await engine.abandon()
    assert "does not answer" in (await other.states(one.entry))["g"].detail


async def test_who_is_held_up_in_the_lock_takes_nothing_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is held up between reading a group and writing it, for longer than its lock lasts, reads it again:
    what others have declared meanwhile stays, and is handed out."""
    monkeypatch.setattr(lock, "_LIFE", 1)
    monkeypatch.setattr(lock, "_SAFE", 0.5)
    slow, other = await start(), await start()
    await other.declare([group("events.base")])
    consumer, has_read, goes_on = slow._js.consumer, asyncio.Event(), asyncio.Event()
    looks = 0

    async def held_up(stream: str, name: str) -> dict[str, Any] | None:
        nonlocal looks
        found = await consumer(stream, name)
        looks += 1
        if looks == 2:  # the first one is before the lock
            has_read.set()
            await goes_on.wait()
        return found

    monkeypatch.setattr(slow._js, "consumer", held_up)
    declaring = asyncio.create_task(slow.declare([group("events.base", "events.slow")]))
    await has_read.wait()
    await other.declare([group("events.base", "events.other")])
    goes_on.set()
    await declaring
    await other.publish([event(subject, subject=f"events.{subject}") for subject in ("base", "slow", "other")])
    assert {delivery.entry.headers["ce-id"] for delivery in await take(other, 3)} == {"base", "slow", "other"}
