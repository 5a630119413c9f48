"""The worlds that cases run in: one fresh, empty namespace for each case on each engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from conformance.memory_world import MemoryWorld
from conformance.nats_world import NatsWorld
from tidings.conformance import World


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of each engine in turn."""
    chosen: AbstractAsyncContextManager[World] = MemoryWorld() if request.param == "memory" else NatsWorld(tmp_path)
    async with chosen as entered:
        yield entered
