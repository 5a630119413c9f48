"""The worlds that cases run in: one fresh, empty namespace for each case on each engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conformance.memory_world import MemoryWorld
from conformance.nats_world import NatsWorld

if TYPE_CHECKING:
    from tidings.conformance import World

pytest.register_assert_rewrite("tidings.conformance")  # before it is imported: a failing case then shows its values


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of each engine in turn."""
    chosen: AbstractAsyncContextManager[World] = MemoryWorld() if request.param == "memory" else NatsWorld(tmp_path)
    async with chosen as entered:
        yield entered
