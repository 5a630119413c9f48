"""What Tidings weighs: what a process loads, and what a worker takes of the memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from started import Started

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 70 * 1024 * 1024


def loaded(code: str) -> set[str]:
    """The modules that a program has loaded when it is done."""
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_importing_tidings_loads_what_is_asked_for() -> None:
    """`import tidings` loads neither asyncio nor msgspec before a name is used, and with all of its names none of
    SQLAlchemy, Starlette, Pydantic, Rich and the drivers."""
    bare = loaded("import tidings")
    assert not bare & {"asyncio", "msgspec", "tidings.bus"}
    everything = {name.partition(".")[0] for name in loaded("from tidings import *; Bus('a')")}
    assert "msgspec" in everything
    assert not everything & {"sqlalchemy", "starlette", "pydantic", "rich", "click", "nats", "redis"}


@pytest.mark.parametrize("url", ["embedded:{folder}", "nats://127.0.0.1:9"])
def test_health_loads_little_more_than_click(tmp_path: Path, url: str) -> None:
    """A probe runs every few seconds: it pays for Click and a socket, not for what a worker needs."""
    words = ["tidings", "health", "--url", url.format(folder=tmp_path)]
    found = loaded(f"sys.argv = {words!r}; from tidings.cli import main; main()")
    assert "click" in found
    assert not found & {
        "asyncio",
        "msgspec",
        "nats",
        "sqlalchemy",
        "rich",
        "starlette",
        "tidings.bus",
        "tidings.engine",
    }


def test_a_worker_is_small(tmp_path: Path) -> None:
    """A worker with the handlers of the to-do list, SQLAlchemy and its driver included, stays below 70 MB."""
    environment = {
        "PYTHONPATH": str(ROOT / "examples"),
        "TIDINGS_DATA": str(tmp_path),
        "TIDINGS_URL": f"embedded:{tmp_path}",
    }
    with Started("run", "todo.handlers:bus", cwd=tmp_path, environment=environment) as worker:
        worker.until("ready: ")
        assert psutil.Process(worker.process.pid).memory_info().rss < LIMIT
