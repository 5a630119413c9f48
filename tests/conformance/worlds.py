"""The engines that are held to the promises, and the cases that apply to each: this table, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import pytest

import needs
from conformance.memory_world import MemoryWorld
from conformance.nats_world import Broker, NatsWorld
from conformance.redis_world import RedisWorld
from tidings.conformance import Layer, World, cases

Make = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[World]]


class Kind(NamedTuple):
    """An engine that is held to the promises."""

    wired: bool
    """Whether there is a server, and a wire to it, that a case can break."""
    make: Make


def _embedded(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[World]:
    directory: Path = request.getfixturevalue("tmp_path")
    return NatsWorld(Broker(directory / "broker"))


def _cluster(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[World]:
    # A new leader takes up to 10 seconds: calls have to wait for it.
    return NatsWorld(request.getfixturevalue("cluster"), patience=30.0)


def _valkey(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[World]:
    return RedisWorld(request.getfixturevalue("valkey"))


def _redis(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[World]:
    return RedisWorld(request.getfixturevalue("redis"))


WORLDS = {
    "memory": Kind(False, lambda _: MemoryWorld()),  # lives in the process: there is no server or wire to break
    "embedded": Kind(True, _embedded),
    "cluster": Kind(True, _cluster),
    "valkey": Kind(True, _valkey),
}
if needs.nothing_may_be_left_out():
    # The oldest version that is supported, as Debian has it. It takes some minutes more than the others together.
    WORLDS["redis"] = Kind(True, _redis)


def everywhere(layer: Layer) -> pytest.MarkDecorator:
    """Run the test with each case of the layer in a world of each engine that it applies to."""
    pairs = [
        pytest.param(name, case, id=f"{name}-{case}", marks=[pytest.mark.redis] if name == "redis" else [])
        for name, kind in WORLDS.items()
        for case in cases(layer, wired=kind.wired)
    ]
    return pytest.mark.parametrize(("world", "case"), pairs, indirect=["world"])
