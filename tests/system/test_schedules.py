"""Schedules with real processes on a real server, all of which are killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import aiosqlite
import pytest

from nats_server import NatsServer
from started import Started
from tidings.engines.nats import NatsEngine

pytest_plugins = ("on_nats",)

APP = """
import tidings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

engine = create_async_engine("sqlite+aiosqlite:///runs.db", connect_args={"timeout": 30})
bus = tidings.Bus("app", sessions=async_sessionmaker(engine))


@bus.every("200ms", group="sweep", catch_up="all")
async def sweep(tick: tidings.Tick, db: AsyncSession) -> None:
    await db.execute(text("INSERT INTO runs (due) VALUES (:due)"), {"due": tick.due.timestamp()})


@bus.on("events.later", group="later")
async def later(message: tidings.Message, db: AsyncSession) -> None:
    await db.execute(text("INSERT INTO runs (due) VALUES (-1)"))
"""
PATIENCE = 40.0


@pytest.fixture
async def app(tmp_path: Path) -> Path:
    """A folder with the application and its database, whose table would take a due time twice."""
    (tmp_path / "app.py").write_text(APP)
    async with aiosqlite.connect(tmp_path / "runs.db") as db:
        await db.execute("PRAGMA journal_mode=WAL")
        await db.execute("CREATE TABLE runs (due REAL)")
        await db.commit()
    return tmp_path


def worker(app: Path, server: NatsServer, *words: str) -> Started:
    environment = {"TIDINGS_URL": server.url, "TIDINGS_LEASE": "2s"}
    return Started("run", "app:bus", *words, cwd=app, environment=environment)


async def runs(app: Path) -> list[float]:
    async with aiosqlite.connect(app / "runs.db", timeout=30) as db, db.execute("SELECT due FROM runs") as cursor:
        return [float(row[0]) async for row in cursor]


async def ticks(server: NatsServer) -> list[float]:
    """The due times as they are stored, in their order."""
    engine = NatsEngine(server.locate)
    await engine.open()
    try:
        entries = await engine.read(["_s.>"], 0, 100_000)
    finally:
        await engine.close()
    return [datetime.fromisoformat(json.loads(entry.body)["due"]).timestamp() for entry in entries]


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.05)


def kill(process: Started) -> None:
    """As `kill -9`."""
    process.signal(signal.SIGKILL)
    process.process.wait()


@pytest.mark.timeout(180)
async def test_each_due_time_runs_once_over_killed_workers_and_a_killed_server(server: NatsServer, app: Path) -> None:
    """Three workers keep a schedule of 200 ms while they and the server are killed one after another: every due time
    is stored once and has its effect in the database once, with none left out."""
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(app, server)) for _ in range(3)]
        for one in workers:
            one.until("ready:")
        for turn in range(6):
            reached = len(await runs(app))

            async def goes_on(reached: int = reached) -> bool:
                return len(await runs(app)) >= reached + 7

            await until(goes_on, f"the schedule goes on after {turn} kills")
            if turn == 3:
                await server.restart()
            else:
                kill(workers[0])
                workers = [*workers[1:], stack.enter_context(worker(app, server))]
        for one in workers:
            one.until("ready:")
        due = set(await ticks(server))

        async def all_ran() -> bool:
            return due <= set(await runs(app))

        await until(all_ran, "every due time runs, also those that killed workers had in hand")
        for one in workers:
            one.signal(signal.SIGTERM)
        assert [one.ended() for one in workers] == [0] * 3

    stored, counted = await ticks(server), Counter(await runs(app))
    assert len(due) >= 42
    assert {round(after - before, 3) for before, after in itertools.pairwise(stored)} == {0.2}
    assert {due for due, count in counted.items() if count > 1} == set()
    assert due <= set(counted) <= set(stored)


@pytest.mark.timeout(120)
async def test_a_delayed_publish_outlives_everything(server: NatsServer, app: Path) -> None:
    """Publisher, worker and server are killed before the time of a delayed event and start again after it: the event
    comes, once; a second one that was cancelled does not."""
    code = f"""
import asyncio, os, signal, tidings
async def main():
    bus = tidings.Bus("shop", url={server.url!r})
    await bus.publish("events.later", 1, delay=1.5)
    assert await bus.cancel(await bus.publish("events.later", 2, delay=1.5))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    with worker(app, server, "--group", "later") as first:
        first.until("ready:")
        publisher = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], cwd=app, check=False, timeout=60
        )
        published = time.monotonic()
        assert publisher.returncode == -signal.SIGKILL
        kill(first)
        server.kill()
    await asyncio.sleep(max(0.0, published + 1.6 - time.monotonic()))  # it has to fall due while nobody is there
    await server.start()
    with worker(app, server, "--group", "later") as second:

        async def came() -> bool:
            return await runs(app) != []

        await until(came, "the delayed event comes")
        second.signal(signal.SIGTERM)
        assert second.ended() == 0
    assert await runs(app) == [-1.0]


def test_the_page_on_schedules_is_true(tmp_path: Path) -> None:
    """The files that docs/schedules.md shows are written as they stand, and its test passes."""
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", page, re.DOTALL))
    assert set(files) == {"jobs.py", "test_jobs.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "test_jobs.py"]
    run = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
