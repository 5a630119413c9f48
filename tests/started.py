"""Commands started by tests: what they say, waiting for it, and their end, whatever becomes of the test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PATIENCE = 60.0


class Started:
    """A `tidings …` that runs; ended with everything it started when the `with` block is left."""

    def __init__(self, *words: str, cwd: Path, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidings", *words],
            cwd=cwd,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """Everything said so far."""
        with self._more:
            return "".join(self._lines)

    def until(self, words: str, times: int = 1, patience: float = PATIENCE) -> str:
        """Wait until it has said that; the line."""
        end = time.monotonic() + patience
        with self._more:
            while len(found := [line for line in self._lines if words in line]) < times:
                left = end - time.monotonic()
                assert left > 0, f"never said {words!r}:\n{''.join(self._lines)}"
                assert self._reader.is_alive() or self._more.wait(0), (
                    f"ended without {words!r}:\n{''.join(self._lines)}"
                )
                self._more.wait(min(left, 0.2))
            return found[times - 1]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, patience: float = PATIENCE) -> int:
        """Wait for its end; the exit code."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {patience:g} s:\n{self.output}") from None
        self._reader.join(5)
        return code

    def children(self) -> list[int]:
        """Pids of the processes it has started."""
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def child(self, words: str) -> int:
        """Pid of the one child whose command line has these words."""
        (found,) = [pid for pid in self.children() if words in " ".join(psutil.Process(pid).cmdline())]
        return found

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            left = [self.process.pid, *self.children()]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self._lines.append(line)
                self._more.notify_all()


def gone(pid: int) -> bool:
    """Whether the process has ended; one that its parent has not yet asked about has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def eventually(what: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until it is so."""
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end, f"not so after {patience:g} s"
        time.sleep(0.02)


@contextlib.contextmanager
def all_gone(pids: list[int], patience: float = PATIENCE) -> Iterator[None]:
    """When the block is left, these have ended or are about to."""
    yield
    eventually(lambda: all(map(gone, pids)), patience)
