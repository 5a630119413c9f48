"""The embedded broker on a disk that others fill, and on one that refuses a write: said at once, healed by itself."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tidings
from demo_system import eventually
from mounted import MIB, fill, tmpfs
from tidings.embedded.locate import TOO_LITTLE, Layout
from tidings.embedded.locks import holder_of
from tidings.errors import EngineUnavailable, StoreFull, Unconfirmed

ANSWER_WITHIN = 5.0
HEALED_WITHIN = 30.0
TROUBLE = (StoreFull, EngineUnavailable, Unconfirmed)
Stored = Counter[str]


class Publishers:
    """Publish without end, each message once more with the same id after an error, and keep the books."""

    def __init__(self, bus: tidings.Bus, count: int) -> None:
        self.acknowledged: set[str] = set()
        self.errors: list[Exception] = []
        self.slowest = 0.0
        self._bus = bus
        self._tasks = [asyncio.create_task(self._publish(name)) for name in range(count)]

    async def _publish(self, name: int) -> None:
        number = 0
        while True:
            id = f"{name}-{number}"
            began = time.monotonic()
            try:
                await self._bus.publish("events.x", {"id": id, "pad": "x" * 2000}, id=id)
            except TROUBLE as error:
                self.errors.append(error)
                self.slowest = max(self.slowest, time.monotonic() - began)
                await asyncio.sleep(0.1)
                continue
            self.acknowledged.add(id)
            number += 1

    async def go_on(self, within: float) -> None:
        """Wait until 50 messages more are acknowledged."""
        enough = len(self.acknowledged) + 50
        await eventually(lambda: len(self.acknowledged) >= enough, within, lambda: str(self.errors[-1:]))

    async def fail(self, within: float) -> None:
        """Wait until each of them has met an error."""
        enough = len(self.errors) + len(self._tasks)
        await eventually(lambda: len(self.errors) >= enough, within)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for end in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(end, asyncio.CancelledError), end


async def stored(bus: tidings.Bus) -> Stored:
    """How often each id stands in the log."""
    found, after = Stored(), 0
    while entries := await bus.engine.read(["events.x"], after, 1000):
        found.update(entry.headers["ce-id"] for entry in entries)
        after = entries[-1].position
    return found


@pytest.mark.mount
async def test_a_full_disk_is_said_at_once_and_heals_by_itself(tmp_path: Path) -> None:
    """Others fill the disk, twice: every publish answers in under 5 s, nothing acknowledged is lost or stored twice,
    publishing and handling go on in under 30 s after there is space, and nothing is handled again."""
    with tmpfs(tmp_path / "disk", 64) as disk:
        bus = tidings.Bus("full", url=f"embedded:{disk / 'broker'}")
        handled: Counter[str] = Counter()

        @bus.on("events.x", group="count")
        async def count(message: tidings.Message[dict[str, Any]]) -> None:
            handled[message.id] += 1

        async with bus:
            await bus.work()
            publishers = Publishers(bus, 4)
            try:
                await publishers.go_on(20)
                for _ in range(2):
                    ballast = fill(disk)
                    await publishers.fail(ANSWER_WITHIN)
                    ballast.unlink()
                    await publishers.go_on(HEALED_WITHIN)
            finally:
                await publishers.stop()
            in_log = await stored(bus)
            await eventually(lambda: set(in_log) <= set(handled), HEALED_WITHIN)
    assert publishers.slowest < ANSWER_WITHIN
    assert any(isinstance(error, StoreFull) for error in publishers.errors)
    assert "free some space" in str(publishers.errors[-1])
    assert publishers.acknowledged - set(in_log) == set()
    assert {id: times for id, times in in_log.items() if times > 1} == {}
    assert {id: times for id, times in handled.items() if times > 1} == {}


@pytest.mark.mount
async def test_a_disk_that_fills_slowly_tears_nothing(tmp_path: Path) -> None:
    """With some megabytes left the broker is stopped in order, before any write of it fails; and comes back."""
    with tmpfs(tmp_path / "disk", 64) as disk:
        layout = Layout.of(disk / "broker")
        async with tidings.Bus("slow", url=f"embedded:{layout.root}") as bus:
            publishers = Publishers(bus, 4)
            try:
                await publishers.go_on(20)
                ballast = fill(disk, leave=TOO_LITTLE - MIB)
                await publishers.fail(ANSWER_WITHIN)
                await eventually(lambda: holder_of(layout.fence) is None, 10)
                said = layout.server_log.read_text()
                ballast.unlink()
                await publishers.go_on(HEALED_WITHIN)
            finally:
                await publishers.stop()
            assert publishers.acknowledged - set(await stored(bus)) == set()
    assert "no space left" not in said
    assert "Server Exiting" in said


@pytest.mark.mount
async def test_who_comes_to_a_full_disk_is_told_so(tmp_path: Path) -> None:
    """A process that starts while the disk is full gets one sentence that names the disk and what to do."""
    with tmpfs(tmp_path / "disk", 64) as disk:
        fill(disk)
        bus = tidings.Bus("late", url=f"embedded:{disk / 'broker'}")
        with pytest.raises(EngineUnavailable, match=r"is full|disk is full"):
            await bus.publish("events.x", {})


async def test_a_write_that_failed_does_not_end_publishing_for_good(tmp_path: Path) -> None:
    """A server whose write has failed although there is space (here: a limit on its files, as with a quota) is
    replaced by itself; nothing acknowledged is lost."""
    layout = Layout.of(tmp_path / "broker")
    bus = tidings.Bus("limited", url=f"embedded:{layout.root}")
    async with bus:
        publishers = Publishers(bus, 4)
        try:
            await publishers.go_on(20)
            server = holder_of(layout.fence)
            assert server is not None
            largest = max(file.stat().st_size for file in layout.data.rglob("*.blk"))
            resource.prlimit(server, resource.RLIMIT_FSIZE, (largest + 20_000, largest + 20_000))
            await publishers.fail(20)
            await publishers.go_on(HEALED_WITHIN)
        finally:
            await publishers.stop()
        in_log = await stored(bus)
        assert holder_of(layout.fence) not in (None, server)
    assert publishers.slowest < ANSWER_WITHIN
    assert publishers.acknowledged - set(in_log) == set()
    assert {id: times for id, times in in_log.items() if times > 1} == {}
    assert "file too large" in layout.supervisor_log.read_text()
    assert os.path.exists(layout.data)
