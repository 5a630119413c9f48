"""Settling on NATS where some of it is refused, late, or was moved on by somebody else."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest

from nats_server import NatsServer
from on_nats import take
from tidings.clock import Clock, ManualClock, SystemClock
from tidings.conformance.proxy import Proxy
from tidings.engine import Claim, Dead, Delivery, Done, Failure, Group, Outgoing, Release, RetryAfter
from tidings.engines.nats import Address, NatsEngine
from tidings.engines.nats.link import Denied
from tidings.errors import EngineUnavailable

pytest_plugins = ("on_nats",)

FAILURE = Failure("ValueError", "not today")
NO_REFERENCES = {"users": [{"user": "u", "password": "p", "permissions": {"publish": {"deny": ["_t.tidings.ref.>"]}}}]}
"""Forbids what has to be stored before a message that is too large to be copied may become a dead letter."""


async def opened(server: NatsServer, clock: Clock | None = None, lease: float = 30.0, user: str = "") -> NatsEngine:
    async def locate() -> Address:
        return Address((server.url,), user, "p" if user else "")

    engine = NatsEngine(locate, clock=clock or SystemClock())
    await engine.open()
    await engine.declare([Group("g", (Claim("events.>"),), lease)])
    return engine


async def publish(engine: NatsEngine, *names: str) -> None:
    await engine.publish([Outgoing("events.a", b"{}", {"ce-id": name}, name) for name in names])


async def test_what_waits_behind_a_dead_wire_is_somebody_elses(server: NatsServer, proxy: Proxy) -> None:
    """What waits in a process for room is not begun there once its lease may be over, as long as nobody knows whether
    the server has heard of the renewal."""
    other = await opened(server, lease=2.0)

    async def locate() -> Address:
        return Address((f"nats://127.0.0.1:{proxy.port}",))

    engine = NatsEngine(locate)
    await engine.open()
    try:
        await publish(other, "a", "b", "c", "d")
        await engine.settle([Done(delivery) for delivery in await engine.pull("g", 2, 5.0)])
        waiting = engine._pullers["g"]._buffer
        async with asyncio.timeout(10):
            while len(waiting) < 2:
                await asyncio.sleep(0.01)
        proxy.stall()
        taking = asyncio.create_task(take(other, 2))
        with contextlib.suppress(EngineUnavailable):
            while not taking.done():
                assert await engine.pull("g", 0, 0.0) == []
                await asyncio.sleep(0.02)
            assert await engine.pull("g", 2, 0.0) == []
        await taking
    finally:
        proxy.drop()
        await engine.close()
        await other.close()


async def test_what_ends_while_others_are_written_is_not_acknowledged(server: NatsServer) -> None:
    """A delivery whose lease ends while another outcome is being stored is left to whoever gets it next."""
    clock = ManualClock()
    engine, other = await opened(server, clock, lease=2.0), await opened(server, lease=2.0)
    try:
        await publish(engine, "retried", "done late")
        first, second = await take(engine, 2)
        server.freeze()
        settling = asyncio.create_task(engine.settle([RetryAfter(first, 0.0, FAILURE), Done(second)]))
        for _ in range(10):
            await asyncio.sleep(0)
        await clock.advance(30)
        server.thaw()
        await settling
        names = set[str]()
        while names != {"retried", "done late"}:
            names |= {each.entry.headers["ce-id"] for each in await take(other, 1)}
    finally:
        await engine.close()
        await other.close()


async def test_a_release_of_what_was_moved_on_leaves_no_trace(server: NatsServer) -> None:
    """Handing back what had begun here, after somebody buried and redrove it, does not bring the old copy back."""
    engine = await opened(server)
    try:
        await publish(engine, "one")
        [stale] = await take(engine, 1)
        await engine.begin(stale)
        twin = Delivery(stale.entry, "g", 1, 0, stale.deadline, msgspec.structs.replace(stale.token))
        await (await engine._settler._write(Dead(twin, "handler_error", FAILURE)))  # and its acknowledgement is lost
        assert await engine.redrive(await engine.dead_letters()) == 1
        await engine.settle([Release(stale)])
        [moved] = await take(engine, 1)
        assert moved.crashes == 0
        assert await engine.pull("g", 5, 0.5) == []
    finally:
        await engine.close()


async def test_one_that_is_refused_holds_back_no_other(tmp_path: Path) -> None:
    """Of many outcomes the server refuses one, whatever for: the others are stored, and the error says why."""
    server = NatsServer(tmp_path / "guarded", authorization=NO_REFERENCES)
    await server.start()
    engine = await opened(server, user="u")
    try:
        link = engine._js.link
        await link.request("events.a", b"x" * (link.max_payload - 100), {"odd": "ä" * 20})
        await publish(engine, "small")
        giant, small = await take(engine, 2)
        with pytest.raises(Denied, match=r"_t\.tidings\.ref"):
            await engine.settle([Dead(giant, "rejected", FAILURE), Dead(small, "rejected", FAILURE)])
        assert [letter.entry.position for letter in await engine.dead_letters()] == [small.entry.position]
    finally:
        await engine.close()
        server.kill()
