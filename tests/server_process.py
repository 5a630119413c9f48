"""A server for tests as a process: killed, frozen, started again."""

from __future__ import annotations

import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path


class ServerProcess(ABC):
    """One server of its own directory, where it also writes `server.log`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    async def start(self) -> None:
        """Return once it answers; again on the same port and data."""

    def launch(self, command: Sequence[str]) -> None:
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def check(self) -> None:
        """Fail with the end of its log if it has ended."""
        assert self.running, (self.directory / "server.log").read_text()[-2000:]

    def kill(self) -> None:
        """As `kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def freeze(self) -> None:
        """As `kill -STOP`, until `thaw`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # a signal takes its time on a busy machine

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    async def restart(self) -> None:
        self.kill()
        await self.start()
