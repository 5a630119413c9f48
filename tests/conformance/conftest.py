"""The fixtures of the conformance tests: a fresh, empty namespace for each case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import needs

pytest.register_assert_rewrite("tidings.conformance")  # before it is imported: a failing case then shows its values

from conformance.nats_world import Cluster  # noqa: E402
from conformance.report import PROPERTY  # noqa: E402
from conformance.worlds import WORLDS  # noqa: E402
from redis_server import RedisServer  # noqa: E402
from tidings.conformance import Case, World  # noqa: E402


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three servers; the first case starts them."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.kill()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Valkey of the wheel; the first case starts it."""
    made = RedisServer(tmp_path_factory.mktemp("valkey"))
    yield made
    made.kill()


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The redis-server of this machine; the first case starts it."""
    binary = needs.redis_tools()
    assert binary is not None
    made = RedisServer(tmp_path_factory.mktemp("redis"), Path(binary))
    yield made
    made.kill()


@pytest.fixture
async def world(request: pytest.FixtureRequest, case: Case) -> AsyncIterator[World]:
    """A world of the engine that is asked for."""
    request.node.user_properties.append((PROPERTY, (request.param, case.layer, case.name)))
    async with WORLDS[request.param].make(request) as entered:
        yield entered
