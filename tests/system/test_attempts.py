"""Attempts against deliveries with real processes: killed workers, messages that kill, databases that are away, and
handlers that do not come back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import tidings
from nats_server import NatsServer
from sql_app import App
from started import Started
from tidings.engine import DeadLetter, GroupStats, Outgoing
from tidings.engines.nats import NatsEngine
from tidings.testing import TestBus
from tidings.work.suspects import CRASHES, UNEXPLAINED

if TYPE_CHECKING:
    from databases import Place, Server

pytest_plugins = ("databases",)

LEASE = 1.5
PATIENCE = 60.0
LONGER_THAN_ITS_PATIENCE = {"sqlite": 22.0, "postgresql": 10.0}
"""Seconds after which waiting inside of the transaction's begin has surely failed."""

NOTED = """
import asyncio, os
import tidings

bus = tidings.Bus("app")
notes = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(word, message):
    os.write(notes, f"{word} {message.data['n']} {message.attempt}\\n".encode())


@bus.on("events.work", group="work", concurrency=50)
async def work(message: tidings.Message) -> None:
    note("begin", message)
    if message.data["n"] == POISON:
        os._exit(1)
    await asyncio.sleep(0.06)
    note("end", message)
"""

STORED = """
import tidings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

bus = tidings.Bus("app", sessions=async_sessionmaker(create_async_engine(URL)))


@bus.on("events.work", group="work")
async def work(message: tidings.Message, db: AsyncSession) -> None:
    values = {"id": message.data["n"], "n": message.attempt}
    await db.execute(text("INSERT INTO items (id, n) VALUES (:id, :n)"), values)
"""

HANGING = """
import os, time
import tidings
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

bus = tidings.Bus("app", sessions=sessionmaker(create_engine("sqlite:///app.db")))


@bus.on("events.work", group="work", timeout=LIMIT, retry=tidings.RetryPolicy(attempts=1))
def work(message: tidings.MessageARGUMENT) -> None:
    print("it hangs", flush=True)
    while True:
        time.sleep(1)
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "server")
    await server.start()
    yield server
    server.kill()


class System:
    """One application on one server: its workers, and what became of its messages."""

    def __init__(self, folder: Path, server: NatsServer, engine: NatsEngine) -> None:
        self.folder = folder
        self.engine = engine
        self._environment = {"TIDINGS_URL": server.url, "TIDINGS_LEASE": f"{LEASE}s", "TIDINGS_GRACE": "1s"}

    def worker(self) -> Started:
        return Started("run", "app:bus", cwd=self.folder, environment=self._environment)

    async def publish(self, *numbers: int) -> None:
        await self.engine.publish([Outgoing("events.work", b'{"n":%d}' % n, {}, str(n)) for n in numbers])

    async def dead(self) -> list[DeadLetter]:
        return await self.engine.dead_letters("work")

    async def counts(self) -> GroupStats:
        return (await self.engine.stats()).groups["work"]

    async def drained(self) -> bool:
        counts = await self.counts()
        return counts.waiting + counts.leased + counts.delayed == 0

    def notes(self, word: str) -> list[tuple[int, int]]:
        """Number and attempt of all that has begun, or ended, so far."""
        file = self.folder / "notes"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(int(n), int(attempt)) for kind, n, attempt in lines if kind == word]


@asynccontextmanager
async def system(folder: Path, server: NatsServer, app: str) -> AsyncIterator[System]:
    (folder / "app.py").write_text(app)
    engine = NatsEngine(server.locate)
    await engine.open()
    try:
        yield System(folder, server, engine)
    finally:
        await engine.close()


async def eventually(condition: Callable[[], Awaitable[bool]], patience: float = PATIENCE) -> float:
    """Wait until it is so; returns the seconds that took."""
    begin = time.monotonic()
    while not await condition():
        assert time.monotonic() - begin < patience, f"not so after {patience:g} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - begin


async def test_twenty_killed_workers_blame_nobody(tmp_path: Path, server: NatsServer) -> None:
    """A worker with a hundred messages in hand is killed twenty times in the middle: no dead letter, all are handled,
    each on its first attempt."""
    dice = random.Random(7)
    async with system(tmp_path, server, NOTED.replace("POISON", "None")) as app:
        await app.publish(*range(100))
        for life in range(20):
            before = len(app.notes("begin"))
            with app.worker() as worker:
                await eventually(partial(_begun, app, before))
                # The first ones at once, so that all come back until they are suspects.
                await asyncio.sleep(0.0 if life <= UNEXPLAINED else dice.uniform(0.05, 0.4))
                worker.signal(signal.SIGKILL)
                worker.ended()
        assert len({n for n, _ in app.notes("end")}) < 100, "there is something left to be blamed"
        with app.worker():
            await eventually(app.drained)
        assert await app.dead() == []
        assert set(app.notes("end")) == {(n, 1) for n in range(100)}


async def test_a_message_that_ends_its_process(tmp_path: Path, server: NatsServer) -> None:
    """One of fifty-one messages ends the process it runs in, again and again: one dead letter, which says so, and the
    other fifty are handled, each on its first attempt."""
    async with system(tmp_path, server, NOTED.replace("POISON", "25")) as app:
        await app.publish(*range(51))
        lives = 0
        while not await app.dead():
            lives += 1
            with app.worker() as worker:
                await eventually(partial(_ended_or_caught, worker, app))
        with app.worker():
            await eventually(app.drained)
        [letter] = await app.dead()
        assert (letter.reason, letter.entry.body, letter.attempts) == ("crash_loop", b'{"n":25}', CRASHES)
        assert letter.failure.error == "ProcessDied"
        assert set(app.notes("end")) == {(n, 1) for n in range(51) if n != 25}
        assert lives == UNEXPLAINED + CRASHES + 1


async def test_a_while_without_the_database(
    tmp_path: Path, server: NatsServer, database: Place, request: pytest.FixtureRequest
) -> None:
    """PostgreSQL is stopped, SQLite locked by somebody else, under load: no dead letter, no attempt; seconds after its
    return everything that was published before and meanwhile is stored, once."""
    tables = await App.start(database)
    try:
        async with system(tmp_path, server, STORED.replace("URL", repr(database.url))) as app:
            with app.worker():
                await app.publish(*range(100))
                await eventually(partial(_at_least, tables, 10))
                with away(database, request):
                    await app.publish(*range(100, 300))
                    await asyncio.sleep(LONGER_THAN_ITS_PATIENCE[database.kind])
                    assert not await app.drained()
                took = await eventually(app.drained)
                assert took < 20
            assert await app.dead() == []
        rows = await tables.sql("SELECT id, n FROM items ORDER BY id")
        assert [tuple(row) for row in rows] == [(n, 1) for n in range(300)]
    finally:
        await tables.close()


@contextlib.contextmanager
def away(place: Place, request: pytest.FixtureRequest) -> Iterator[None]:
    """While the block runs, nobody can write to the database."""
    if place.kind == "sqlite":
        other = sqlite3.connect(place.sync_url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
        try:
            other.execute("BEGIN IMMEDIATE")
            yield
        finally:
            other.close()
        return
    server: Server = request.getfixturevalue("postgresql_server")
    server.stop()
    try:
        yield
    finally:
        server.start()


async def test_a_deadlock_is_run_again_at_once(postgresql: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Of two handlers that lock the same rows crosswise one is run again within its delivery: both are handled, on
    their first attempt, and nothing was handed back."""
    tables = await App.start(postgresql)
    await tables.sql("INSERT INTO items VALUES (1, 0), (2, 0)")
    bus, runs, both = tidings.Bus("app", sessions=tables.sessions), [], asyncio.Barrier(2)

    @bus.on("events.work", group="work", concurrency=2)
    async def work(message: tidings.Message, db: AsyncSession) -> None:
        runs.append((message.data["first"], message.attempt))
        await db.execute(text("UPDATE items SET n = n + 1 WHERE id = :id"), {"id": message.data["first"]})
        if len(runs) <= 2:
            await both.wait()
        await db.execute(text("UPDATE items SET n = n + 1 WHERE id = :id"), {"id": 3 - message.data["first"]})

    caplog.set_level("INFO", "tidings.worker")
    async with TestBus(bus) as bench:
        for first in (1, 2):
            await bus.publish("events.work", {"first": first})
        await eventually(partial(_said, "the transaction runs again", caplog))
        await bench.clock.advance(1)
        await bench.settle()
        assert await bench.dead_letters() == []
    assert sorted(runs[:2]) == [(1, 1), (2, 1)]
    assert len(runs) == 3
    assert [row[0] for row in await tables.sql("SELECT n FROM items")] == [2, 2]
    assert "handing the message back" not in caplog.text
    await tables.close()


@pytest.mark.parametrize("argument", ["", ", db: Session"])
async def test_a_thread_that_does_not_return_does_not_hold_up_the_end(
    tmp_path: Path, server: NatsServer, argument: str
) -> None:
    """A plain handler hangs for ever, with or without a transaction: after the grace time the worker says so and ends
    all the same, and the message is not blamed."""
    async with system(tmp_path, server, HANGING.replace("ARGUMENT", argument).replace("LIMIT", "600")) as app:
        await app.publish(1)
        with app.worker() as worker:
            worker.until("it hangs")
            worker.signal(signal.SIGTERM)
            assert worker.ended() == 0
            assert "a thread cannot be stopped: work goes on in the background" in worker.output
        engine = app.engine
        [again] = await engine.pull("work", 1, 3 * LEASE)
        assert again.attempts == 0


@pytest.mark.parametrize("argument", ["", ", db: Session"])
async def test_a_thread_over_its_time_is_an_attempt(tmp_path: Path, server: NatsServer, argument: str) -> None:
    """A plain handler that hangs for longer than its time has failed, though its thread goes on: with its last
    attempt the message is a dead letter, and the worker reports the thread."""
    async with system(tmp_path, server, HANGING.replace("ARGUMENT", argument).replace("LIMIT", "0.5")) as app:
        await app.publish(1)
        with app.worker() as worker:
            await eventually(partial(_dead, app))
            [letter] = await app.dead()
            assert (letter.reason, letter.attempts) == ("timeout", 1)
            worker.until("a thread cannot be stopped: work goes on in the background")


async def _begun(app: System, before: int) -> bool:
    return len(app.notes("begin")) > before


async def _said(words: str, caplog: pytest.LogCaptureFixture) -> bool:
    return words in caplog.text


async def _dead(app: System) -> bool:
    return bool(await app.dead())


async def _at_least(tables: App, count: int) -> bool:
    return await tables.count("items") >= count


async def _ended_or_caught(worker: Started, app: System) -> bool:
    return worker.process.poll() is not None or bool(await app.dead())
