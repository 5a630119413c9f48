"""A nats-server for each test, its API beside any engine, and steps that tests of the engine take.

Use it with `pytest_plugins = ("on_nats",)` in a test module.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from conformance.nats_wire import frames, is_receipt
from nats_server import NatsServer
from tidings.conformance.proxy import Proxy
from tidings.engine import Delivery, Engine
from tidings.engines.nats.api import JetStream
from tidings.engines.nats.link import Link


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "server")
    await server.start()
    yield server
    server.kill()


@pytest.fixture
async def proxy(server: NatsServer) -> AsyncIterator[Proxy]:
    """Stands before the server."""

    async def target() -> tuple[str, int]:
        return "127.0.0.1", server.port

    proxy = Proxy(target, frames, is_receipt)
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
async def link(server: NatsServer) -> AsyncIterator[Link]:
    """A connection beside any engine."""
    link = Link(server.locate)
    await link.open(10)
    yield link
    await link.close()


@pytest.fixture
def js(link: Link) -> JetStream:
    """The server's API, beside any engine."""
    return JetStream(link, 10.0)


async def take(engine: Engine, count: int) -> list[Delivery]:
    """So many deliveries of the group `g`."""
    taken: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(taken) < count:
            taken += await engine.pull("g", count - len(taken), 5.0)
    return taken


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)
