"""Who may only publish, and names reply subjects that are not its own: nothing of it stops or misleads the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nats_server import NatsServer
from tidings.clock import SystemClock
from tidings.engine import (
    Claim,
    Dead,
    Delivery,
    Done,
    Entry,
    Failure,
    Group,
    Headers,
    Outgoing,
    Park,
    Reply,
    RetryAfter,
)
from tidings.engines.nats import Address, NatsEngine
from tidings.engines.nats.api import JetStream
from tidings.engines.nats.housekeeping import tidy
from tidings.engines.nats.layout import Layout
from tidings.engines.nats.link import Link
from tidings.permissions import USERS, denied

LAYOUT = Layout("shop", ("events.>",))
PACK = Group("pack", (Claim("events.orders.>"),), lease=5.0)
FAILURE = Failure("ValueError", "not today")


class Shop:
    """A worker's engine, and a publisher that has other people's answers sent where it likes."""

    def __init__(self, engine: NatsEngine, worker: JetStream, publisher: JetStream) -> None:
        self.engine = engine
        self.worker = worker
        self.publisher = publisher

    async def order(self, *bodies: bytes) -> None:
        await self.engine.publish([Outgoing("events.orders.made", body, {}, body.decode()) for body in bodies])

    async def say(self, *subjects: str) -> None:
        """Have the server's answer to a publish stored on subjects of Control."""
        for subject in subjects:
            before = (await self.worker.subjects(LAYOUT.control, subject)).get(subject, 0)
            await self.publisher.link.publish("events.noise", b"{}", reply=subject)
            async with asyncio.timeout(20):
                while (await self.worker.subjects(LAYOUT.control, subject)).get(subject, 0) <= before:
                    await asyncio.sleep(0.01)

    async def take(self, group: str = "pack") -> Delivery:
        [delivery] = await self.engine.pull(group, 1, 20.0)
        return delivery


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    """On a real server, where `publish` may do what it may on our own broker."""
    users = [{"user": user, "password": user, "permissions": denied(user)} for user in USERS]
    server = NatsServer(tmp_path / "server", authorization={"users": users})
    await server.start()

    def located(user: str) -> Callable[[], Awaitable[Address]]:
        async def locate() -> Address:
            return Address((server.url,), user, user)

        return locate

    async with AsyncExitStack() as stack:
        stack.callback(server.kill)
        engine = NatsEngine(located("work"), namespace="shop")
        stack.push_async_callback(engine.close)
        await engine.open()
        apis = []
        for user in ("work", "publish"):
            link = Link(located(user))
            stack.push_async_callback(link.close)
            await link.open(10)
            apis.append(JetStream(link, 10.0))
        yield Shop(engine, *apis)


async def test_answers_go_to_askers_only(shop: Shop) -> None:
    """A worker that is asked with a reply subject of the server's or of ours answers nobody: nothing is erased, and
    nothing is written."""
    asked = asyncio.Event()

    async def count(subject: str, body: bytes, headers: Headers) -> Reply:
        if body == b"last":
            asked.set()
        return Reply(b"{}", {})

    await shop.engine.declare([PACK])
    await shop.order(b"a", b"b")
    held = await shop.take()
    publisher = shop.publisher.link
    replies = ("$JS.API.STREAM.PURGE.shop-events", LAYOUT.record("claims"), LAYOUT.failed, "_s.shop.sweep")
    heard: list[str] = []
    for subject in (LAYOUT.failed, "_s.shop.sweep"):
        await shop.worker.link.subscribe(subject, lambda frame: heard.append(frame.subject))
    await shop.worker.link.flush()
    async with shop.engine.serve("shop.count", "shop", count):
        for reply in replies:
            await publisher.publish("shop.count", b"{}", reply=reply)
            await publisher.publish(LAYOUT.who("pack"), b"1", reply=reply)
        await publisher.publish(LAYOUT.who("pack"), b"no number", reply="_INBOX.x")
        await publisher.publish("shop.count", b"last")
        async with asyncio.timeout(20):
            await asked.wait()
    await shop.engine.settle([Done(held)])  # behind all answers, on the same connection
    await shop.worker.link.flush()
    assert [entry.body for entry in await shop.engine.read(["events.>"], 0, 10)] == [b"a", b"b"]
    assert await shop.worker.subjects(LAYOUT.control, "_t.shop.reg.>") == {}
    assert heard == []


async def test_records_stay_what_we_wrote(shop: Shop) -> None:
    """What a stranger puts over a record is not read, and the record can be written on; also one that was not there."""
    engine = shop.engine
    revision = await engine.register("claims", b"ours", 0)
    await shop.say(LAYOUT.record("claims"), LAYOUT.record("other"))
    found = await engine.recall("claims")
    assert found is not None
    assert (found.value, found.revision) == (b"ours", revision)
    again = await engine.register("claims", b"newer", revision)
    assert again > revision
    assert await engine.recall("other") is None
    await engine.register("other", b"first", 0)
    other = await engine.recall("other")
    assert other is not None
    assert other.value == b"first"


async def test_a_failed_message_is_not_lost(shop: Shop) -> None:
    """With strangers' messages in the inbox, the register and the lock, a group is declared, its message is retried
    with its attempts counted, and dies as a dead letter."""
    inbox, tried = LAYOUT.inbox("pack", 1), LAYOUT.attempts("pack", 1)
    await shop.say(LAYOUT.lock)
    await shop.engine.declare([PACK])
    await shop.engine.declare([Group("pack", (*PACK.claims, Claim("events.bills.>")), lease=5.0)])
    await shop.order(b"a")
    first = await shop.take()
    await shop.say(inbox, tried, LAYOUT.inbox("pack", "x"), LAYOUT.attempts("pack", "x"))
    await shop.engine.settle([RetryAfter(first, 0.0, FAILURE)])
    await shop.say(tried)
    second = await shop.take()
    assert (second.entry.body, second.attempts) == (b"a", 1)
    assert (await shop.engine.stats()).groups["pack"].leased == 1
    await shop.say(inbox)
    await shop.engine.settle([Dead(second, "handler_error", FAILURE)])
    [letter] = await shop.engine.dead_letters("pack")
    assert letter.entry.body == b"a"
    async with asyncio.timeout(20):
        while (await shop.engine.stats()).groups["pack"].pending:
            await shop.engine.pull("pack", 1, 0.2)


async def test_dead_letters_are_put_back(shop: Shop) -> None:
    """Strangers' messages over dead letters and before their way back neither hide nor remove any."""
    await shop.engine.declare([PACK])
    await shop.order(b"a", b"b")
    for _ in range(2):
        await shop.engine.settle([Dead(await shop.take(), "handler_error", FAILURE)])
    await shop.say(LAYOUT.dead("pack", 1), LAYOUT.inbox("pack", 1), LAYOUT.dead("pack", "x"))
    letters = await shop.engine.dead_letters("pack")
    assert [letter.entry.body for letter in letters] == [b"a", b"b"]
    assert await shop.engine.redrive(letters) == 2
    again = [await shop.take(), await shop.take()]
    assert sorted(delivery.entry.body for delivery in again) == [b"a", b"b"]
    await shop.engine.settle([Done(delivery) for delivery in again])
    assert await shop.engine.dead_letters("pack") == []


async def test_what_is_set_aside_comes_back(shop: Shop) -> None:
    """Strangers' messages among what an ordered group has set aside do not keep it there."""
    await shop.engine.declare([Group("pack", PACK.claims, lease=5.0, ordered=True)])
    await shop.order(b"a")
    await shop.engine.settle([Park(await shop.take(), 0)])
    await shop.say(LAYOUT.parked("pack", 1), LAYOUT.parked("pack", "x"), LAYOUT.inbox("pack", 1))
    aside: list[Entry] = await shop.engine.parked("pack", 0, 10)
    assert [entry.body for entry in aside] == [b"a"]
    assert await shop.engine.unpark("pack", [1]) == 1
    assert (await shop.take()).entry.body == b"a"


async def test_purging_and_tidying_pass_over(shop: Shop) -> None:
    """Places that a stranger made up stop neither the removal of old events nor the housekeeping."""
    await shop.engine.declare([PACK])
    await shop.order(b"a")
    await shop.engine.settle([Done(await shop.take())])
    await shop.say(*(place("pack", "x") for place in (LAYOUT.reference, LAYOUT.attempts, LAYOUT.inbox, LAYOUT.dead)))
    assert await shop.engine.purge("events.orders.>", 1, 2) == 1
    await tidy(shop.worker, LAYOUT, SystemClock(), kept=0.0)
    await shop.order(b"c")
    assert (await shop.take()).entry.body == b"c"


async def test_a_delayed_message_is_not_taken_for_one_that_was_sent(shop: Shop) -> None:
    """A stranger's message where a message is to wait, whose time is past, does not count as that message."""
    await shop.say(LAYOUT.schedule("events.orders.made", "late"))
    late = Outgoing("events.orders.made", b"late", {}, "late", not_before=SystemClock().time() - 60)
    [stored] = await shop.engine.publish([late])
    assert not stored.duplicate


async def test_a_delayed_message_comes_although_a_stranger_ended_it(shop: Shop) -> None:
    """A stranger's message on the place of a delayed one takes it out of force: the housekeeping brings it back, once,
    and what had been cancelled stays cancelled."""
    control = (await shop.worker.stream(LAYOUT.control))["config"]
    await shop.worker.call(f"STREAM.UPDATE.{LAYOUT.control}", {**control, "duplicate_window": 100_000_000})
    await shop.engine.declare([PACK])
    at = SystemClock().time() + 1.0
    for id in ("ended", "cancelled"):
        await shop.engine.publish([Outgoing("events.orders.made", b"{}", {"ce-id": id}, id, not_before=at)])
    assert await shop.engine.cancel("events.orders.made", "cancelled")
    await shop.say(*(LAYOUT.schedule("events.orders.made", id) for id in ("ended", "cancelled")))
    assert await shop.engine.pull("pack", 1, 2.0) == []
    async with asyncio.timeout(20):
        while not (came := await shop.engine.pull("pack", 1, 0.5)):
            await tidy(shop.worker, LAYOUT, SystemClock())
    [delivery] = came
    assert delivery.entry.headers["ce-id"] == "ended"
    await tidy(shop.worker, LAYOUT, SystemClock())
    assert await shop.engine.pull("pack", 1, 0.5) == []
    assert await shop.engine.delayed(10) == []


async def test_what_strangers_put_among_dead_letters_is_not_counted_for_long(shop: Shop) -> None:
    """A stranger's message that looks like a dead letter from afar is gone once somebody has looked at it."""
    await shop.engine.declare([PACK])
    await shop.say(LAYOUT.dead("pack", 77))
    async with asyncio.timeout(20):
        while (await shop.engine.stats()).groups["pack"].dead:
            assert await shop.engine.dead_letters() == []
