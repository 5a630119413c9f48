"""The users that `tidings doctor --permissions` prints, in a real server: enough for everything, and no more."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nats_server import NatsServer
from tidings import Bus, Event, Request, RetryPolicy, Tick, claims
from tidings.clock import SystemClock
from tidings.conformance.steps import heard
from tidings.engine import Outgoing
from tidings.engines.nats import Address, NatsEngine
from tidings.engines.nats.api import JetStream
from tidings.engines.nats.housekeeping import tidy
from tidings.engines.nats.layout import Layout
from tidings.engines.nats.link import Denied, Link
from tidings.errors import EngineUnavailable
from tidings.message import new_id
from tidings.settings import Settings
from tidings.watching.hub import log_id

LAYOUT = Layout("shop", ("events.>",))
USERS = ("publish", "work", "admin")
PRINTED = {f"SHOP_{user.upper()}_PASSWORD": f"the-{user}-one" for user in USERS}
BY_DESIGN = '"$JS.API.DIRECT.GET.'
"""What `publish` tries once, and then reads message by message: what a direct get yields can be sent anywhere."""


class Ordered(Event, subject="events.shop.ordered"):
    number: int


class Count(Request[int], subject="shop.count"): ...


def printed(*words: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "tidings", "--namespace", "shop", "doctor", "--permissions", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsServer]:
    """One that knows the printed users and nobody else."""
    for name, password in PRINTED.items():
        monkeypatch.setenv(name, password)
    account = f"accounts {{ SHOP {{ jetstream: enabled\n{printed('--live', 'shop.>')}\n}} }}"
    server = NatsServer(tmp_path / "server", account)
    await server.start()
    yield server
    server.kill()


def url(server: NatsServer, user: str) -> str:
    return f"nats://shop-{user}:the-{user}-one@127.0.0.1:{server.port}/shop"


def address(server: NatsServer, user: str) -> Callable[[], Awaitable[Address]]:
    async def locate() -> Address:
        return Address((server.url,), f"shop-{user}", f"the-{user}-one")

    return locate


@pytest.fixture
async def api(server: NatsServer) -> AsyncIterator[Callable[[str], Awaitable[JetStream]]]:
    """The server's API as one of the users."""
    async with AsyncExitStack() as stack:

        async def api(user: str) -> JetStream:
            link = Link(address(server, user))
            stack.push_async_callback(link.close)
            await link.open(10)
            return JetStream(link, 10.0)

        yield api


def violations(server: NatsServer) -> list[str]:
    """What the server has refused."""
    log = (server.directory / "server.log").read_text()
    return [line for line in log.splitlines() if "Violation" in line]


async def until(condition: Callable[[], Any], what: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            found = condition()
            found = await found if isinstance(found, Awaitable) else found
            if found:
                return found
            await asyncio.sleep(0.02)


def shop(server: NatsServer, failing: set[int], done: list[object]) -> Bus:
    settings = Settings(lease=2.0, retry=RetryPolicy(attempts=2, first=0.0, most=0.0))
    bus = Bus("shop", url=url(server, "work"), settings=settings)

    @bus.on(Ordered, group="pack")
    async def pack(ordered: Ordered) -> None:
        if ordered.number in failing:
            raise ValueError("not today")
        done.append(ordered.number)

    @bus.every("100ms", group="sweep")
    async def sweep(tick: Tick) -> None:
        done.append("swept")

    @bus.reply(Count)
    async def count(_: Count) -> int:
        return len(done)

    @bus.listen("shop.prices")
    async def hear(message: Any) -> None:
        done.append("heard")

    return bus


async def test_a_worker_needs_what_is_printed(server: NatsServer, api: Any) -> None:
    """Publishing now and later, retries, dead letters and what is done with them, schedules, pause, renaming, purging
    and tidying: the server refuses nothing of it."""
    failing, done = {2, 3}, list[object]()
    bus = shop(server, failing, done)
    async with bus:
        engine = bus.engine
        await bus.work()
        await bus.publish_many([Ordered(number=number) for number in range(4)])
        await bus.publish(Ordered(number=4), delay=0.2)
        assert await bus.cancel(await bus.publish(Ordered(number=5), delay=60))
        letters = await until(lambda: _letters(engine, 2), "two dead letters")
        assert await engine.amend(letters[0], b'{"number": 7}')
        failing.clear()
        [changed] = [letter for letter in await engine.dead_letters("pack") if letter.entry.body == b'{"number": 7}']
        assert await engine.redrive([changed]) == 1
        [left] = await engine.dead_letters("pack")
        assert await engine.discard([left]) == 1
        assert await engine.bury([left]) == 1
        assert await engine.discard([left]) == 1
        await until(lambda: {0, 1, 4, 7, "swept"} <= set(done), "everything is handled")
        await claims.change(engine, "pack", paused=True)
        await claims.change(engine, "pack", paused=False)
        assert await bus.request(Count()) > 0
        assert len(await bus.gather(Count(), wait=5, at_least=1)) == 1
        assert [number async for number in bus.stream(Count())] != []
        await bus.broadcast("shop.prices", {"tea": 1})
        await until(lambda: "heard" in done, "the channel is heard")
        await log_id(engine)
        entries = await engine.read(["events.>"], 0, 10)
        assert (await engine.states(entries[0]))["pack"].state == "done"
        assert await engine.replay("pack", entries[:1], "again") == 1
        await until(lambda: done.count(0) == 2, "the replay")
    async with Bus("other", url=url(server, "work"), roots=["events.>", "orders.>"]) as other:
        await claims.restart(other.engine, "pack", name="packing", filters=["events.shop.ordered"])
        await claims.change(other.engine, "sweep", removed=True)
        assert await other.engine.purge("events.>", 1, 3) > 0
        worker = await api("work")
        await tidy(worker, LAYOUT, SystemClock(), kept=0.0)
    assert violations(server) == []


async def _letters(engine: Any, count: int) -> Any:
    found = await engine.dead_letters("pack")
    return found if len(found) == count else None


async def test_a_publisher_needs_what_is_printed(server: NatsServer) -> None:
    """Publishing, asking, broadcasting, listening, reading (push, tail) and looking: only direct gets are refused."""
    done: list[object] = []
    async with shop(server, set(), done) as bus:
        await bus.work()
        engine = NatsEngine(address(server, "publish"), namespace="shop")
        await engine.open()
        try:
            async with engine.listen(["shop.prices"]) as signals:
                await engine.publish([Outgoing("events.shop.ordered", b'{"number": 1}', {}, new_id())])
                [entry] = await engine.read(["events.shop.>"], 0, 10, 5.0)
                assert await engine.broadcast("shop.prices", b"{}", {})
                assert (await heard(signals)).channel == "shop.prices"
            assert (await engine.request("shop.count", b"{}", {}, 5.0)).body
            await until(lambda: 1 in done, "it is handled")
            assert (await engine.states(entry))["pack"].state == "done"
            assert (await engine.space()).used > 0
        finally:
            await engine.close()
        for words in (["pub", "events.shop.ordered", '{"number": 2}'], ["tail", "--no-follow"], ["ls"], ["stats"]):
            command = [sys.executable, "-m", "tidings", "--url", url(server, "publish"), *words]
            run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=os.environ)
            assert run.returncode == 0, run.stderr
        await until(lambda: 2 in done, "what the command published is handled")
    assert [line for line in violations(server) if BY_DESIGN not in line] == []


async def test_a_publisher_cannot_erase(server: NatsServer, api: Any) -> None:
    """Whatever it asks, and wherever it has answers sent to: every event stays, and so does what is ours."""
    async with shop(server, set(), []) as bus:
        await bus.publish_many([Ordered(number=number) for number in range(5)])
        ledger = await claims.load(bus.engine)
        publisher = await api("publish")
        for stream in (LAYOUT.events, LAYOUT.control):
            for verb, body in (
                (f"STREAM.PURGE.{stream}", {}),
                (f"STREAM.DELETE.{stream}", None),
                (f"STREAM.MSG.DELETE.{stream}", {"seq": 1}),
                (f"STREAM.UPDATE.{stream}", {"name": stream, "max_msgs": 1}),
                (f"STREAM.SNAPSHOT.{stream}", {"deliver_subject": "shop.x"}),
                (f"CONSUMER.CREATE.{stream}.own", {"stream_name": stream, "config": {"deliver_subject": "shop.x"}}),
                (f"CONSUMER.DELETE.{stream}.pack", None),
                (f"CONSUMER.PAUSE.{stream}.pack", {"pause_until": "2200-01-01T00:00:00Z"}),
                (f"CONSUMER.MSG.NEXT.{stream}.pack", {"batch": 1}),
            ):
                with pytest.raises(Denied, match="tidings doctor --permissions"):
                    await publisher.call(verb, body)
            for target in (f"STREAM.PURGE.{stream}", f"STREAM.MSG.DELETE.{stream}", f"STREAM.DELETE.{stream}"):
                reply = f"$JS.API.{target}"
                await publisher.link.publish("events.shop.sent", b"{}", reply=reply)
                await publisher.link.publish("$JS.API.INFO", b"", reply=reply)
                await publisher.link.publish(f"$JS.API.STREAM.INFO.{stream}", b"", reply=reply)
                got = b'{"seq": 1}'
                await publisher.link.publish(f"$JS.API.STREAM.MSG.GET.{stream}", got, reply=reply)
                await publisher.link.publish(f"$JS.API.DIRECT.GET.{stream}", got, reply=reply)
        for subject in (LAYOUT.record("claims"), LAYOUT.lock, "_s.shop.sweep", "$JS.ACK.shop-events.pack.1.1.1.1.0"):
            await publisher.link.publish(subject, b"{}")
        await publisher.link.flush()
        assert [len(await bus.engine.read(["events.shop.ordered"], 0, 100)), await claims.load(bus.engine)] == [
            5,
            ledger,
        ]
        assert (await bus.engine.stats()).groups["pack"].waiting == 5


async def test_a_user_without_permissions_is_told_the_command(tmp_path: Path) -> None:
    """Whether it may not ask, or may not hear the answers: one sentence, which names the command that helps."""
    may_not_ask = {"publish": {"allow": ["events.>"]}, "subscribe": {"allow": ["_INBOX.>"]}}
    may_not_hear = {"publish": {"allow": [">"]}, "subscribe": {"allow": ["events.>"]}}
    users = [
        {"user": "mute", "password": "m", "permissions": may_not_ask},
        {"user": "deaf", "password": "d", "permissions": may_not_hear},
    ]
    server = NatsServer(tmp_path / "server", authorization={"users": users})
    await server.start()
    try:
        for user in ("mute", "deaf"):

            async def locate(user: str = user) -> Address:
                return Address((server.url,), user, user[0])

            engine = NatsEngine(locate, namespace="shop", timeout=3.0)
            with pytest.raises(EngineUnavailable, match="`tidings doctor --permissions`"):
                await engine.open()
            await engine.close()
    finally:
        server.kill()


def test_each_user_by_itself() -> None:
    """`--user work` prints that user only, with the subjects of the namespace asked for."""
    text = printed("--user", "work")
    assert "SHOP_WORK_PASSWORD" in text
    assert "publish_password" not in text.lower()
    assert "$JS.API.STREAM.PURGE.shop-events" in text
    assert "$JS.API.STREAM.DELETE" not in text
