"""`tidings demo --engine valkey`: the to-do system on a Valkey of its own, and what happens when that is killed."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx

from demo_system import DemoSystem, demo, eventually


def server(system: DemoSystem) -> int:
    """The pid of the demo's Valkey."""
    [process] = system.processes("valkey-server")
    return process.pid


async def test_items_survive_a_killed_server(tmp_path: Path) -> None:
    """Items go the whole way; `kill -9` of the Valkey under them costs some time and no item, and none comes twice."""
    async with demo(tmp_path / "data", "--engine", "valkey") as system, httpx.AsyncClient() as client:
        first = {f"before {number}" for number in range(5)}
        for item in first:
            await system.post(client, item, id=item)
        await system.saved(first)
        killed = server(system)
        [process] = system.processes("valkey-server")
        system.kill(process)
        second = {f"after {number}" for number in range(5)}
        for item in second:
            await system.post(client, item, id=item)
        rows = await system.saved(first | second)
        assert sorted(row["item"] for row in rows) == sorted(first | second)
        assert server(system) != killed
        assert await system.stop() == 0
    assert "Traceback" not in system.text


async def test_a_killed_demo_leaves_no_server_behind(tmp_path: Path) -> None:
    """`kill -9` of the demo ends its Valkey too; the next start has what was stored, under another password."""
    data = tmp_path / "data"
    async with demo(data, "--engine", "valkey") as system, httpx.AsyncClient() as client:
        url = (data / "valkey" / "url").read_text()
        await system.post(client, "kept")
        await system.saved({"kept"})
        system.process.send_signal(signal.SIGKILL)
        await eventually(lambda: not system.processes(), 20.0, lambda: str(system.processes()))
    async with demo(data, "--engine", "valkey") as again:
        assert (data / "valkey" / "url").read_text() != url
        assert (data / "valkey" / "url").stat().st_mode & 0o077 == 0
        await again.saved({"kept"})
        assert url.partition("@")[0].rpartition(":")[2] not in again.text
        assert await again.stop() == 0
