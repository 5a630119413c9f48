"""A power cut, as the disk sees it: the broker's store lies on an ext4 in a file, and that file is copied under the
stopped server. What was not synced by then is only in the page cache above it, and missing from the copy."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tidings
from demo_system import eventually
from mounted import copy_disk, ext4, make_ext4
from tidings import embedded
from tidings.embedded.locate import Layout
from tidings.embedded.locks import holder_of

CUTS = 3
SEED = 20240611


class Publishers:
    """Publish singly, singly from eight tasks at once, and in batches; `acknowledged` has the ids."""

    def __init__(self, bus: tidings.Bus) -> None:
        self.acknowledged: dict[str, set[str]] = {"single": set(), "concurrent": set(), "batch": set()}
        self._bus = bus
        ways = [
            self._singly("single", "one"),
            *(self._singly("concurrent", f"c{n}") for n in range(8)),
            self._batches(),
        ]
        self._tasks = [asyncio.create_task(way) for way in ways]

    def counts(self) -> dict[str, int]:
        return {way: len(ids) for way, ids in self.acknowledged.items()}

    async def _singly(self, way: str, name: str) -> None:
        for number in itertools.count():
            receipt = await self._bus.publish("events.x", {"n": number, "pad": "x" * 300}, id=f"{name}-{number}")
            self.acknowledged[way].add(receipt.id)

    async def _batches(self) -> None:
        while True:
            receipts = await self._bus.publish_many([Batched(pad="x" * 300) for _ in range(40)])
            self.acknowledged["batch"].update(receipt.id for receipt in receipts)

    async def some_more(self, number: int) -> None:
        """Wait until that many are acknowledged in each way."""
        wanted = {way: count + number for way, count in self.counts().items()}
        await eventually(lambda: all(count >= wanted[way] for way, count in self.counts().items()), 40)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for end in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(end, asyncio.CancelledError), end


class Batched(tidings.Event, subject="events.batched"):
    pad: str


@contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def cut(image: Path, disk: Path, copy: Path) -> None:
    """Copy the disk under the stopped server, beside two files of which only one was synced."""
    synced, unsynced = disk / f"synced-{copy.name}", disk / f"unsynced-{copy.name}"
    with stopped(holder_of(Layout.of(disk / "broker").fence)):
        with synced.open("wb") as file:
            file.write(b"x" * 5000)
            file.flush()
            os.fsync(file.fileno())
        unsynced.write_bytes(b"x" * 5000)
        copy_disk(image, copy)


async def ids_on(copy: Path, place: Path) -> set[str]:
    """The ids in the log of a broker that is started on the copied disk, which also has to prove the method."""
    with ext4(copy, place) as disk:
        unsynced = disk / f"unsynced-{copy.name}"
        assert (disk / f"synced-{copy.name}").stat().st_size == 5000
        assert not unsynced.exists() or unsynced.stat().st_size == 0
        found: set[str] = set()
        after = 0
        async with tidings.Bus("after", url=f"embedded:{disk / 'broker'}") as bus:
            while entries := await bus.engine.read([">"], after, 1000):
                found.update(entry.headers["ce-id"] for entry in entries)
                after = entries[-1].position
        return found


@pytest.mark.mount
async def test_what_was_acknowledged_is_there_after_a_power_cut(tmp_path: Path) -> None:
    """At the embedded default everything acknowledged before the cut is on the copied disk, published singly, from
    many tasks, or in batches; three cuts in the middle of publishing."""
    image, moments = tmp_path / "disk.img", random.Random(SEED)
    make_ext4(image, 256)
    before: list[dict[str, set[str]]] = []
    with ext4(image, tmp_path / "disk") as disk:
        async with tidings.Bus("before", url=f"embedded:{disk / 'broker'}") as bus:
            publishers = Publishers(bus)
            try:
                for number in range(CUTS):
                    await publishers.some_more(moments.randint(40, 200))
                    before.append({way: set(ids) for way, ids in publishers.acknowledged.items()})
                    cut(image, disk, tmp_path / f"cut{number}.img")
            finally:
                await publishers.stop()
    for number, acknowledged in enumerate(before):
        found = await ids_on(tmp_path / f"cut{number}.img", tmp_path / f"disk-after-{number}")
        assert {way: len(ids - found) for way, ids in acknowledged.items()} == dict.fromkeys(acknowledged, 0)


@pytest.mark.mount
async def test_the_cut_would_be_seen(tmp_path: Path) -> None:
    """The same cut with a broker that syncs every ten minutes loses what it had acknowledged: the method can fail."""
    image = tmp_path / "disk.img"
    make_ext4(image, 256)
    with ext4(image, tmp_path / "disk") as disk:
        settings = embedded.BrokerSettings(sync_interval="10m")
        async with (
            await embedded.start(disk / "broker", settings=settings),
            tidings.Bus("before", url=f"embedded:{disk / 'broker'}") as bus,
        ):
            await asyncio.to_thread(os.sync)  # so that the streams are there, and only messages can be missing
            acknowledged = {(await bus.publish("events.x", {"n": number})).id for number in range(50)}
            cut(image, disk, tmp_path / "cut.img")
    assert acknowledged - await ids_on(tmp_path / "cut.img", tmp_path / "disk-after")
