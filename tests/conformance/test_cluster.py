"""What a cluster is for: copies, and as many as were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.nats_world import Cluster
from nats_server import NatsServer
from tidings.engine import Claim, Group
from tidings.engines.nats import NatsEngine
from tidings.errors import EngineUnavailable


@pytest.mark.parametrize(("asked", "kept"), [(None, 3), (1, 1)])
async def test_a_namespace_is_kept_in_copies(cluster: Cluster, asked: int | None, kept: int) -> None:
    """On a cluster both streams of a namespace and what is kept of its groups have three copies, or as many as were
    asked for."""
    await cluster.start()
    engine = NatsEngine(cluster.locate, namespace=f"copies{kept}", roots=(f"copies{kept}.>",), replicas=asked)
    streams = (f"copies{kept}-events", f"copies{kept}-control")
    try:
        await engine.open()
        await engine.declare([Group("g", (Claim(f"copies{kept}.>"),))])
        async with cluster.api() as js:
            for stream in streams:
                assert (await js.stream(stream))["config"]["num_replicas"] == kept
                consumer = await js.consumer(stream, "g")
                assert consumer is not None
                assert len(consumer["cluster"].get("replicas") or []) == kept - 1
    finally:
        await engine.close()
        await cluster.leave(*streams)


async def test_copies_need_a_cluster(tmp_path: Path) -> None:
    """Copies that a single server cannot keep are refused when the engine opens, with what to write instead."""
    server = NatsServer(tmp_path / "server")
    await server.start()
    engine = NatsEngine(server.locate, replicas=3)
    try:
        with pytest.raises(EngineUnavailable, match=r"cannot keep 3 copies .*\?replicas=1"):
            await engine.open()
    finally:
        await engine.close()
        server.kill()
