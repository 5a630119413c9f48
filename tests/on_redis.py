"""A Valkey for each test, and engines on it.

Use it with `pytest_plugins = ("on_redis",)` in a test module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from redis_server import RedisServer
from tidings.engines.redis import Address, RedisEngine

Start: TypeAlias = Callable[..., Awaitable[RedisEngine]]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path / "server", appendfsync="everysec")
    await server.start()
    yield server
    server.kill()


@pytest.fixture
async def start(server: RedisServer) -> AsyncIterator[Start]:
    """Open engines, and close them after the test."""
    engines: list[RedisEngine] = []

    async def start(address: Address | None = None, **options: Any) -> RedisEngine:
        engine = RedisEngine(address or server.address, **options)
        engines.append(engine)
        await engine.open()
        return engine

    yield start
    for engine in engines:
        await engine.close()
