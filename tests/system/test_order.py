"""Order per key with real processes and databases."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nats_server import NatsServer
from sql_app import App
from started import Started
from tidings.engine import Outgoing
from tidings.engines.nats import NatsEngine
from tidings.message import KEY

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases", "on_nats")

STORED = """
import os, pathlib, time
import tidings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

bus = tidings.Bus("app", sessions=async_sessionmaker(create_async_engine(URL)))


@bus.on("events.work", group="work", order=True, timeout=60)
async def work(message: tidings.Message, db: AsyncSession) -> None:
    n = message.data["n"]
    await db.execute(text("INSERT INTO items (id, n) VALUES (:id, :n)"), {"id": n, "n": os.getpid()})
    if n == 3 and not pathlib.Path("go on").exists():
        print("in the middle", flush=True)
        while not pathlib.Path("go on").exists():
            time.sleep(0.01)
"""


async def test_a_frozen_worker_commits_nothing_once_another_is_active(
    database: Place, server: NatsServer, tmp_path: Path
) -> None:
    """The active worker is frozen in the middle of a transaction, another takes over, and the frozen one wakes up: it
    commits nothing more, every effect is there once, and those from the middle on are the other's."""
    app, engine = await App.start(database), NatsEngine(server.locate)
    await engine.open()
    (tmp_path / "app.py").write_text(STORED.replace("URL", repr(database.url)), encoding="utf-8")
    options = {"TIDINGS_URL": server.url, "TIDINGS_LEASE": "1500ms", "TIDINGS_GRACE": "1s"}
    try:
        with Started("run", "app:bus", cwd=tmp_path, environment=options) as frozen:
            await asyncio.to_thread(frozen.until, "this worker is the active one")
            with Started("run", "app:bus", cwd=tmp_path, environment=options) as standby:
                await asyncio.to_thread(standby.until, "ready")
                await engine.publish([Outgoing("events.work", b'{"n":%d}' % n, {KEY: "a"}, str(n)) for n in range(6)])
                await asyncio.to_thread(frozen.until, "in the middle")
                frozen.signal(signal.SIGSTOP)
                await asyncio.to_thread(standby.until, "this worker is the active one (epoch 2)")
                (tmp_path / "go on").touch()
                frozen.signal(signal.SIGCONT)
                await asyncio.to_thread(frozen.until, "this worker is not the active one any more")
                async with asyncio.timeout(60):
                    while (await engine.stats()).groups["work"].pending:
                        await asyncio.sleep(0.05)
                by = {"before": frozen.process.pid, "after": standby.process.pid}
        rows = [tuple(row) for row in await app.sql("SELECT id, n FROM items")]
        assert sorted(rows) == [(n, by["before"] if n < 3 else by["after"]) for n in range(6)]
    finally:
        await engine.close()
        await app.close()


def test_the_page_on_order_is_true(tmp_path: Path) -> None:
    """The files that docs/order.md shows are written as they stand, and its test passes."""
    page = (Path(__file__).parents[2] / "docs" / "order.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", page, re.DOTALL))
    assert set(files) == {"moves.py", "test_moves.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "test_moves.py"]
    run = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
