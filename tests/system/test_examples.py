"""The numbered examples are run as their first line says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from demo_system import clean_environment

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_hello_stores_and_its_handlers_take_it(tmp_path: Path) -> None:
    """The first example stores an event with no worker running; a worker started later handles it."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "hello.py").write_text((EXAMPLES / "01_hello.py").read_text())
    environment = {**clean_environment(), "PYTHONUNBUFFERED": "1"}
    stored = subprocess.run(
        [sys.executable, "hello.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert stored.stdout == "stored  events.todo.newitem at position 1\n", stored.stderr
    worker = subprocess.Popen(
        [sys.executable, "-m", "tidings", "run", "hello:bus"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    printed = {worker.stdout.readline(), worker.stdout.readline()}
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=30)
    assert worker.returncode == 0
    assert printed == {"saved   write the docs\n", "audited events.todo.newitem {'item': 'write the docs'}\n"}


def test_orders_tests_itself(tmp_path: Path) -> None:
    """The second example's own test passes."""
    environment = {**os.environ, **clean_environment()}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "02_orders.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout
