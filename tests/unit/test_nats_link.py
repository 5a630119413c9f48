"""The connection that comes back: who waits for it waits long enough, and who cannot wait does it no harm."""

from __future__ import annotations

import asyncio

from nats_server import NatsServer
from tidings.engines.nats.link import Disconnected, Link

pytest_plugins = ("on_nats",)


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
