"""Ordered groups over answers that got lost: on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nats_server import NatsServer
from tidings.engine import Claim, Delivery, Done, Failure, Group, Outgoing, Park, RetryAfter
from tidings.engines.nats import NatsEngine
from tidings.errors import Conflict

FAILURE = Failure("ValueError", "no", "", "test", "here", "1")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[NatsEngine]:
    server = NatsServer(tmp_path / "server")
    await server.start()
    engine = NatsEngine(server.locate, fsyncs=True)
    await engine.open()
    yield engine
    await engine.close()
    server.kill()


async def take_one(engine: NatsEngine) -> Delivery:
    async with asyncio.timeout(30):
        while True:
            for delivery in await engine.pull("g", 1, 5.0):
                return delivery


@pytest.mark.parametrize("begins", [True, False])
async def test_a_stale_copy_is_given_up_for_good(engine: NatsEngine, begins: bool) -> None:
    """A message is set aside, the acknowledgement gets lost, and it is put back: the delivery before that can neither
    begin nor be kept, and does not come again with each lease; the one that was put back is handled."""
    await engine.declare([Group("g", (Claim("events.>"),), 30.0, ordered=True)])
    await engine.publish([Outgoing("events.a", b"{}", {"ce-id": "1"}, "1")])
    stale = await take_one(engine)
    await (await engine._settler._write(Park(stale, 1)))  # as far as a process got that was killed then
    assert await engine.unpark("g", [stale.entry.position]) == 1
    with pytest.raises(Conflict, match="moved on"):
        await (engine.begin(stale) if begins else engine.keep(RetryAfter(stale, 0.0, FAILURE)))
    again = await take_one(engine)
    assert (again.entry, again.attempts, again.crashes) == (stale.entry, 0, 0)
    await engine.settle([Done(again)])
    counts = (await engine.stats()).groups["g"]
    assert (counts.leased, counts.waiting, counts.parked) == (0, 0, 0)
