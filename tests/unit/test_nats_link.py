"""The connection that comes back: who waits for it waits long enough, and who cannot wait does it no harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nats_server import NatsServer
from on_nats import until
from tidings.conformance.proxy import Proxy
from tidings.engines.nats import Address
from tidings.engines.nats.connection import PING_TIMEOUT, Frame
from tidings.engines.nats.link import Disconnected, Link

pytest_plugins = ("on_nats",)


@pytest.fixture
async def shaky(proxy: Proxy) -> AsyncIterator[Link]:
    """A connection through the proxy."""

    async def locate() -> Address:
        return Address((f"nats://127.0.0.1:{proxy.port}",))

    link = Link(locate)
    await link.open(10)
    yield link
    await link.close()


async def test_who_asks_while_there_is_none_does_not_end_the_next_one(server: NatsServer, link: Link) -> None:
    """Everybody who tries to send while the connection is made is refused, and the connection that is made stays."""
    before = link.generation
    server.kill()
    starting = asyncio.create_task(server.start())
    refused = 0
    while link.generation == before:
        try:
            await link.publish("a")
        except Disconnected:
            refused += 1
        await asyncio.sleep(0)
    await starting
    await link.flush()
    assert refused
    assert (link.generation, link.connected) == (before + 1, True)


async def test_who_waits_outlasts_a_connection_that_is_lost_at_once(server: NatsServer, link: Link) -> None:
    """A connection that stands and is lost again before those who wait for it have run does not end their patience."""
    before, left = link.generation, 3

    def lose_it() -> None:
        nonlocal left
        if link.connected and left:
            left -= 1
            link._lost(ConnectionError("once more"))

    link.on_connect(lose_it)
    await server.restart()
    while link.generation == before:
        await link.ready(20.0)
        await asyncio.sleep(0)
    await link.ready(20.0)
    assert (link.connected, link.generation, left) == (True, before + 4, 0)


async def test_who_subscribes_while_it_is_made_takes_part(proxy: Proxy, shaky: Link, link: Link) -> None:
    """Whoever subscribes after a connection was lost hears something as soon as the next one stands, in whatever
    moment of its making that was."""
    before, subjects, heard = shaky.generation, list[str](), set[str]()

    def hear(frame: Frame) -> None:
        heard.add(frame.subject)

    proxy.delay(0.05)
    proxy.drop()
    while shaky.generation == before:
        subjects.append(f"a.{len(subjects)}")
        await shaky.subscribe(subjects[-1], hear)
        await asyncio.sleep(0.01)
    proxy.delay(0.0)
    await shaky.flush()
    for subject in subjects:
        await link.publish(subject)

    async def all_heard() -> bool:
        return heard == set(subjects)

    await until(all_heard)


async def test_a_drain_ends_with_its_connection(proxy: Proxy, shaky: Link) -> None:
    """Who waits for what is still on its way does not wait for what a lost connection would have brought."""
    subscription = await shaky.subscribe("a", lambda frame: None)
    await shaky.flush()
    proxy.stall()
    draining = asyncio.create_task(subscription.drain())
    await asyncio.sleep(0)
    proxy.drop()
    async with asyncio.timeout(PING_TIMEOUT / 2):
        await draining
