"""An old and a new release of one application side by side, as real processes on a real broker."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import tidings
from demo_system import clean_environment, eventually
from nats_server import NatsServer

APP = Path(__file__).parents[1] / "rolling_app.py"
ROUNDS = 400


class Process:
    """One process of the application; `output` has what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.output += line.decode("utf-8", "replace")

    async def ended(self, within: float = 60.0) -> str:
        """Its output, once it has ended with status 0."""
        async with asyncio.timeout(within):
            status = await self.process.wait()
            await self._reader
        assert status == 0, self.output
        return self.output

    async def stop(self) -> str:
        """The same, after SIGTERM."""
        self.process.terminate()
        return await self.ended()

    async def abandon(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader


class Shop:
    """The application's processes, and what its workers have handled."""

    def __init__(self, url: str, effects: Path) -> None:
        self.url = url
        self.effects = effects
        self.processes: list[Process] = []

    async def start(self, role: str, release: int) -> Process:
        """Start a process and wait until it works."""
        process = Process(
            await asyncio.create_subprocess_exec(
                sys.executable,
                str(APP),
                role,
                str(release),
                str(self.effects),
                str(ROUNDS),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=clean_environment() | {"TIDINGS_URL": self.url},
            )
        )
        self.processes.append(process)
        await eventually(lambda: "ready" in process.output, 30, lambda: process.output)
        return process

    def handled(self) -> Counter[tuple[str, ...]]:
        """How often each (group, event, number) was handled, by whichever release."""
        return Counter(tuple(line.split()[1:]) for line in self._lines())

    def by_release(self) -> Counter[str]:
        return Counter(line.split()[0] for line in self._lines())

    def _lines(self) -> list[str]:
        return self.effects.read_text().splitlines() if self.effects.exists() else []


@asynccontextmanager
async def shop(folder: Path) -> AsyncIterator[Shop]:
    server = NatsServer(folder / "nats")
    await server.start()
    running = Shop(server.url, folder / "effects")
    try:
        yield running
    finally:
        for process in running.processes:
            await process.abandon()
        server.kill()


def everything() -> set[tuple[str, str, str]]:
    """What the two publishers publish, for each group that wants it."""
    early, late = range(1_000_000, 1_000_000 + ROUNDS), range(2_000_000, 2_000_000 + ROUNDS)
    events = [("Ordered", n) for n in (*early, *late)] + [("Shipped", n) for n in late]
    priced = [("Priced", n) for n in (*early, *late)]
    orders = {("orders", name, str(n)) for name, n in events}
    return orders | {("books", name, str(n)) for name, n in events + priced}


async def dead_letters(url: str) -> list[str]:
    async with tidings.Bus("look", url=url) as bus:
        return [f"{letter.key}: {letter.failure.message}" for letter in await bus.engine.dead_letters()]


@pytest.mark.timeout(240)
async def test_an_old_and_a_new_release_side_by_side_lose_nothing(tmp_path: Path) -> None:
    """Both publish and handle at once, with an added field, a new version and a new event: none lost, none dead."""
    async with shop(tmp_path) as system:
        workers = [await system.start("worker", 1), await system.start("worker", 1)]
        early = await system.start("publisher", 1)
        await eventually(lambda: system.by_release()["1"] > 50, 30)
        newer = await system.start("worker", 2)
        late = await system.start("publisher", 2)
        await asyncio.gather(early.ended(), late.ended())
        assert set(system.by_release()) == {"1", "2"}
        told = "".join([await worker.stop() for worker in workers])
        assert "left to a worker that knows it" in told

        await eventually(lambda: set(system.handled()) >= everything(), 60, lambda: newer.output[-4000:])
        await newer.stop()
        assert set(system.handled()) == everything()
        assert set(system.handled().values()) == {1}
        assert await dead_letters(system.url) == []
