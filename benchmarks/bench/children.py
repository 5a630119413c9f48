"""Child processes: started with a job, heard line by line, killed when they are no longer needed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from .job import Job

BENCHMARKS = Path(__file__).resolve().parents[1]
TIME_LIMIT = 900.0
"""Seconds in which a child has to say something; storing a million messages takes a while."""


class ChildFailed(Exception):
    """A child ended, or said nothing for too long; the text has the last words of its stderr."""


class Child:
    def __init__(self, job: Job, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._job = job
        self._process = process
        self._errors = errors

    def hear(self) -> dict[str, Any]:
        """The next line of JSON that it says; whatever else is on its stdout (banners) is passed over."""
        timer = threading.Timer(TIME_LIMIT, self._process.kill)
        timer.start()
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if line.startswith("{"):
                    said: dict[str, Any] = json.loads(line)
                    return said
        finally:
            timer.cancel()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
        raise ChildFailed(f"{self._job.contender} ({self._job.role}) ended without a result: {' | '.join(words)}")


@contextlib.contextmanager
def child(job: Job) -> Iterator[Child]:
    """Running while the block does."""
    command = [sys.executable, "-m", "bench.child", msgspec.json.encode(job).decode()]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "PYTHONWARNINGS": "ignore"}
    with (
        tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=folder,
        ) as process,
    ):
        try:
            yield Child(job, process, errors)
        finally:
            process.kill()


def run(job: Job) -> dict[str, Any]:
    """What a job says that ends by itself."""
    with child(job) as running:
        return running.hear()
