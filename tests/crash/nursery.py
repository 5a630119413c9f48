"""`python -m crash.nursery`: makes processes of the application by fork, so that a kill costs no start of Python.

One at a time: a job as a line of JSON comes in, the pid and, when the process has ended, its status go out as lines.
This process has no threads and no event loop; what it has imported is all that its children share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path

import msgspec

import tidings.engines.nats
import tidings.engines.redis  # noqa: F401  (imported here, what a child needs costs it nothing)

from .app import Job, live

TESTS = Path(__file__).resolve().parents[1]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=Job)
        if (pid := os.fork()) == 0:
            born(job)
        say(pid)
        _, status = os.waitpid(pid, 0)
        say(os.waitstatus_to_exitcode(status))


def born(job: Job) -> None:
    """In the child: be the job's process, and never return."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number, where in enumerate((nothing, log, log)):
            os.dup2(where, number)
        live(job)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


class Nursery:
    """A nursery process, as its user sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._child: Child | None = None

    @classmethod
    async def start(cls, environment: dict[str, str]) -> Nursery:
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crash.nursery"),
                env={**environment, "PYTHONPATH": str(TESTS)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )

    async def bear(self, job: Job) -> Child:
        """Start a process; the one before must have ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        pid = await self._line()
        self._child = Child(pid, asyncio.create_task(self._line()))
        return self._child

    async def _line(self) -> int:
        assert self._process.stdout is not None
        return int(await self._process.stdout.readline())

    async def close(self) -> None:
        """With the child that is there, if any."""
        if self._child is not None:
            await self._child.stop(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


class Child:
    """One process of the application."""

    def __init__(self, pid: int, ending: asyncio.Task[int]) -> None:
        self._pid = pid
        self._ending = ending

    @property
    def alive(self) -> bool:
        return not self._ending.done()

    async def ended(self, within: float) -> int | None:
        """Its exit status, negative for a signal; None if it lives on."""
        await asyncio.wait([self._ending], timeout=within)
        return self._ending.result() if self._ending.done() else None

    async def stop(self, number: signal.Signals = signal.SIGTERM, within: float = 30.0) -> int:
        """End it; its exit status."""
        with contextlib.suppress(ProcessLookupError):  # it has just died, and its status is on its way here
            if self.alive:
                os.kill(self._pid, number)
        status = await self.ended(within)
        if status is None:
            os.kill(self._pid, signal.SIGKILL)
            await self._ending
            raise AssertionError(f"it did not end within {within:g} s of signal {number}")
        return status


if __name__ == "__main__":
    main()
