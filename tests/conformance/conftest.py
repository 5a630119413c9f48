"""The fixtures of the conformance tests: a fresh, empty namespace for each case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

pytest.register_assert_rewrite("tidings.conformance")  # before it is imported: a failing case then shows its values

from conformance.nats_world import Cluster  # noqa: E402
from conformance.worlds import WORLDS  # noqa: E402
from tidings.conformance import World  # noqa: E402


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three servers; the first case starts them."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.kill()


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A world of the engine that is asked for."""
    async with WORLDS[request.param].make(request) as entered:
        yield entered
