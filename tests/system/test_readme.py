"""What README.md and pages of docs show is typed here as it stands, and the output is compared."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo_system import clean_environment

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- (?P<what>[^\n]*?) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)


@dataclass
class Command:
    typed: str
    shown: str
    runs_on: bool = False
    """It is interrupted once it has printed as many lines as are shown."""


@pytest.mark.parametrize(
    ("page", "commands"), [("README.md", 5), ("docs/live.md", 1), ("docs/settings.md", 2), ("docs/testing.md", 1)]
)
def test_the_examples_run_and_print_what_is_shown(page: str, commands: int, tmp_path: Path) -> None:
    """Each file of the page is written and each of its commands run, in an empty project; the output is as shown."""
    (tmp_path / "pyproject.toml").touch()
    environment = {
        **clean_environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    ran = 0
    for step in steps((ROOT / page).read_text(encoding="utf-8")):
        if isinstance(step, Command):
            printed = run(step, tmp_path, environment)
            if step.runs_on:
                printed = in_the_order_of(step.shown, printed)
            assert re.fullmatch(pattern(step.shown), printed), as_text(step, printed)
            ran += 1
        else:
            name, text = step
            (tmp_path / name).write_text(text, encoding="utf-8")
    assert ran >= commands


FORGOTTEN = """
import pytest
from shop import Ordered, bus
from tidings.testing import TestBus

@pytest.mark.asyncio
async def test_without():
    await bus.publish(Ordered(item="book"))

@pytest.mark.asyncio
async def test_with():
    async with TestBus(bus) as t:
        await bus.publish(Ordered(item="book"))
        await t.settle()
"""


def test_a_test_that_forgets_the_test_bus_reaches_no_broker(tmp_path: Path) -> None:
    """With the conftest.py of docs/testing.md a test that publishes without `TestBus` fails by its name, and no broker
    is started; the next test is not disturbed."""
    (tmp_path / "pyproject.toml").touch()
    for step in steps((ROOT / "docs/testing.md").read_text(encoding="utf-8")):
        if isinstance(step, tuple):
            (tmp_path / step[0]).write_text(step[1], encoding="utf-8")
    (tmp_path / "test_forgotten.py").write_text(FORGOTTEN)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--disable-warnings", "test_forgotten.py"],
        cwd=tmp_path,
        env={**clean_environment(), "TIDINGS_URL": f"embedded:{tmp_path / 'broker'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.search(r"2 passed, .*1 error", tested.stdout), tested.stdout
    assert "ERROR test_forgotten.py::test_without" in tested.stdout
    assert "this test used the bus without a TestBus" in tested.stdout
    assert {"broker", ".tidings"} & {path.name for path in tmp_path.iterdir()} == set()


MODELS = "from sqlalchemy.orm import DeclarativeBase\n\n\nclass Base(DeclarativeBase): ...\n"
PAGES = (
    "README.md",
    *(f"docs/{page}.md" for page in ("database", "live", "order", "push", "schedules", "settings", "testing")),
)


def test_the_examples_pass_a_strict_type_checker(tmp_path: Path) -> None:
    """`mypy --strict` finds no error in the files of these pages, but for tests that say no types, and what the reader
    has already."""
    for page in PAGES:
        for step in steps((ROOT / page).read_text(encoding="utf-8")):
            if not isinstance(step, Command):
                file = tmp_path / step[0]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(step[1], encoding="utf-8")
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py"))
    assert {"hello.py", "orders.py", "stock.py", "moves.py", "web.py", "jobs.py", "shop.py"} <= set(written)
    assert "migrations/env.py" in written
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--allow-untyped-defs",
            "--allow-incomplete-defs",
            "--config-file",
            os.devnull,
            *written,
        ],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert checked.returncode == 0, checked.stdout


def as_text(command: Command, printed: str) -> str:
    return f"$ {command.typed}\nshown:\n{command.shown}\nprinted:\n{printed}"


def steps(text: str) -> Iterator[Command | tuple[str, str]]:
    """Files to write and commands to run, in the order of the page."""
    for block in BLOCK.finditer(text):
        what, body = block["what"], block["text"]
        if what.startswith("file: "):
            yield what.removeprefix("file: "), body
        elif what.startswith("run"):
            for typed, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", body, re.MULTILINE):
                yield Command(typed, shown, runs_on="Ctrl-C" in what)


def run(command: Command, folder: Path, environment: dict[str, str]) -> str:
    """What the command prints to stdout; it must end with 0."""
    process = subprocess.Popen(
        shlex.split(command.typed),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if not command.runs_on:
            out, err = process.communicate(timeout=60)
        else:
            out = read_lines(process, len(command.shown.splitlines()))
            process.send_signal(signal.SIGINT)
            rest, err = process.communicate(timeout=60)
            out += rest
        assert process.returncode == 0, f"$ {command.typed}\n{out}\n{err}"
        return out
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def read_lines(process: subprocess.Popen[str], count: int) -> str:
    assert process.stdout is not None
    out = ""
    for _ in range(count):
        line = process.stdout.readline()
        assert line, f"it ended by itself:\n{out}"
        out += line
    return out


def in_the_order_of(shown: str, printed: str) -> str:
    """Handlers run side by side: which of two prints first is not promised."""
    order = {line: place for place, line in enumerate(shown.splitlines())}
    return "\n".join(sorted(printed.splitlines(), key=lambda line: order.get(line, len(order)))) + "\n"


def pattern(shown: str) -> str:
    """A regular expression for what is shown; `…` stands for anything in a line."""
    lines = [".*".join(re.escape(part) for part in line.split("…")) for line in shown.splitlines()]
    return "\n".join(rf"{line} *" for line in lines) + r"\s*"
