"""One nats-server process: started here, or started by a supervisor that is gone and taken over."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import BrokerSettings, credentials, server_config, server_environment, write_private
from .locate import Layout
from .locks import ProcessLock, lifeline_end, signal_holder, tie_to_lifeline

_STOP_GRACE = 20.0
"""Seconds to wait for a server that was told to stop; longer and it is killed (acknowledged data is on disk)."""


class Server:
    """A running nats-server, known by the fence it holds; its pid is only believed while it does."""

    def __init__(self, layout: Layout, fence: ProcessLock, pid: int, process: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self._layout = layout
        self._fence = fence
        self._process = process
        self._log_from = 0
        self._log_read = _size(layout.server_log)

    @classmethod
    def adopt(cls, layout: Layout, fence: ProcessLock, pid: int) -> Server:
        """Look after a server that another supervisor has started."""
        return cls(layout, fence, pid, None)

    @classmethod
    def spawn(
        cls, layout: Layout, fence: ProcessLock, binary: str, settings: BrokerSettings, port: int | None
    ) -> Server:
        """Start one on `port` (None: any). Raises `OSError` or `SubprocessError` when there is nothing to start."""
        for stale in layout.run.glob("*.ports"):
            stale.unlink()
        config = server_config(layout, settings, credentials(layout, create=True), port)
        write_private(layout.config, json.dumps(config, indent=2, ensure_ascii=False))
        logged = _size(layout.server_log)
        with _console(layout.console_log) as console, lifeline_end(layout.lifeline) as end:
            process = subprocess.Popen(
                [binary, "-c", str(layout.config)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=server_environment(),
                cwd=layout.root,
                pass_fds=(fence.file, end),
                # Runs between fork and exec, and this process has one thread: nothing can hold a lock it needs.
                preexec_fn=_bind(fence, end),
            )
        server = cls(layout, fence, process.pid, process)
        server._log_from = logged
        return server

    def alive(self) -> bool:
        """Whether the process is there; a zombie is not."""
        if self._process is not None and self._process.poll() is not None:
            return False
        return self._fence.holder() == self.pid

    def port(self) -> int | None:
        """The port it listens on, once it has said so in its ports file (which it does not write in one step)."""
        for file in self._layout.run.glob(f"*_{self.pid}.ports"):
            try:
                urls = json.loads(file.read_text())["nats"]
                return int(urls[0].rsplit(":", 1)[1])
            except (OSError, ValueError, LookupError, TypeError):
                return None
        return None

    def write_error(self) -> str:
        """The line in which it has said, since the last look, that a write failed; else empty.

        After that nats-server stores nothing in the stream concerned until it is started again.
        """
        size = _size(self._layout.server_log)
        if size == self._log_read:
            return ""
        said, self._log_read = _tail(self._layout.server_log, self._log_read), size
        return next((line for line in said if "critical write error" in line.lower()), "")

    def ended(self) -> str:
        """How it ended, with the last lines of its log, passwords left out."""
        code = None if self._process is None else self._process.wait()
        lines = [*_tail(self._layout.console_log, 0), *_tail(self._layout.server_log, self._log_from)]
        said = "\n".join(f"  {_redact(line, self._layout)}" for line in lines[-12:])
        how = (
            "ended" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        )
        return f"nats-server {how}" + (f"; its log says:\n{said}" if said else " and its log says nothing")

    def stop(self) -> None:
        """Ask it to stop and wait until it is gone; kill it when it does not."""
        for number, patience in ((signal.SIGTERM, _STOP_GRACE), (signal.SIGKILL, 5.0)):
            # A stopped (SIGSTOP) process would keep the request for later.
            sent = signal_holder(self._fence, self.pid, number) and signal_holder(self._fence, self.pid, signal.SIGCONT)
            deadline = time.monotonic() + patience
            while sent and self.alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            if not self.alive():
                break
        if self._process is not None and self._process.poll() is None:
            self._process.wait(5.0)


def _bind(fence: ProcessLock, lifeline: int) -> Callable[[], None]:
    def bind() -> None:
        if not fence.take():
            raise BlockingIOError("another nats-server has this directory")
        tie_to_lifeline(lifeline)

    return bind


@contextmanager
def _console(path: Path) -> Iterator[int]:
    # What the server before said is kept once: a panic is found nowhere else.
    if _size(path):
        path.replace(path.with_suffix(".old.log"))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tail(path: Path, start: int) -> list[str]:
    """The lines written since `start`, at most the last 16 KiB of them."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - 16384))
            return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return []


def _redact(line: str, layout: Layout) -> str:
    for password in credentials(layout).values():
        line = line.replace(password, "***")
    return re.sub(r"(?i)(pass(?:word)?\W{1,4})[^\s,}\"']+", r"\1***", line)
