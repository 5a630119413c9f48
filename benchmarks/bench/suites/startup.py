"""How long a process takes until it is of use."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..benchmark import Benchmark, Case, Metric, Sample
from ..job import now
from ..servers import broker

IMPORTS = ("tidings", "nats", "click", "faststream.nats", "faststream.redis", "taskiq_nats", "celery", "dramatiq")
TIDINGS = (sys.executable, "-m", "tidings")


def timed(command: Sequence[str | Path]) -> Sample:
    """Wall-clock of a command that has to succeed."""
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        began = now()
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )
        took = now() - began
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}: {done.stderr.strip()[-300:]}")
    return {"ms": took * 1e3}


def health() -> Sample:
    with broker("nats") as server:
        return timed([*TIDINGS, "health", "--url", server.url])


def demo() -> Sample:
    """From the command to the page that answers, and down again: processes are started and stopped in order."""
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        arguments = ["demo", "--no-open", "--exit-after-ready", "--port", "0", "--data", os.path.join(folder, "data")]
        return timed([*TIDINGS, *arguments])


def cases(quick: bool) -> list[Case]:
    found = [Case("python, nothing else", partial(timed, [sys.executable, "-c", "pass"]), "python")]
    found += [
        Case(f"import {name}", partial(timed, [sys.executable, "-c", f"import {name}"]), name) for name in IMPORTS
    ]
    found.append(Case("tidings health", health))
    found.append(Case("tidings demo, up to ready and down again", demo))
    return found


BENCHMARK = Benchmark(
    "startup",
    "Start-up",
    "Wall-clock of the whole command, the interpreter's own start included; byte code is compiled and in the cache.",
    (Metric("ms", "time", "ms"),),
    cases,
    rounds=7,
    quick_rounds=3,
)
