"""The process that keeps one nats-server running for as long as anybody uses it.

Started by the first client (see `launch.py`), it belongs to none of them: it detaches, holds `supervisor.lock`, and
every tenth of a second looks at three things. *Is the server there?* If not, it is started again: at once, later with
growing pauses. *Is there space?* When the disk is about to be full the server is stopped, because once a write of it
has failed it stores nothing any more; it is started again when there is space. *Is anybody left?* Everybody who uses
the broker shares `clients.lock`; the supervisor takes it exclusively when nobody does, and with it in hand stops the
server and leaves. A client that comes in that moment waits for the lock and then starts a new supervisor.

When a supervisor is killed, a client starts another one, which finds the server by its fence and looks after it. When
the supervisor and all clients are killed, the lifeline ends the server. So no case needs a third process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .binary import Binary, numbers
from .config import Address, BrokerSettings, credentials, write_private
from .locate import MIN_FREE, TOO_LITTLE, Layout
from .locks import FileLock, ProcessLock, hold_lifeline
from .probe import ProbeError, probe
from .server import Server
from .state import State

TICK = 0.1
_LOG_LIMIT = 1024 * 1024
_CALM = 60.0
"""Seconds without a crash after which the next one is answered at once again."""


class Supervisor:
    """Looks after the server of one directory; `lock` is held by this process."""

    def __init__(self, layout: Layout, settings: BrokerSettings, binary: Binary, lock: ProcessLock) -> None:
        self._layout = layout
        self._settings = settings
        self._binary = binary
        self._lock = lock
        self._fence = ProcessLock(layout.fence)
        self._clients = FileLock(layout.clients_lock)
        self._lifeline = hold_lifeline(layout.lifeline)
        before = State.read(layout.state)
        self._state = State(os.getpid(), port=before.port if before else None, settings=settings.dump())
        self._told = True
        self._server: Server | None = None
        self._next_start = 0.0
        self._crashes: list[float] = []
        self._deserted_since: float | None = None

    def run(self) -> None:
        """Look after the server until nobody is left."""
        self._report()
        while not self._deserted():
            self._tend()
            if not self._told:
                self._report()
            time.sleep(TICK if self._state.phase == "ready" else TICK / 10)
        self._leave()

    def _deserted(self) -> bool:
        """Whether nobody has used the broker for the linger time; if so, nobody can come in any more."""
        if not self._clients.try_acquire():
            self._deserted_since = None
            return False
        now = time.monotonic()
        if self._deserted_since is None:
            self._deserted_since = now
        if now - self._deserted_since >= self._settings.linger:
            return True
        self._clients.release()
        return False

    def _tend(self) -> None:
        if self._state.phase == "full":
            self._await_space()
        elif self._server is None:
            if time.monotonic() >= self._next_start:
                self._begin()
        elif self._layout.free() < TOO_LITTLE:
            self._close_shop(self._server, self._layout.no_space())
        elif error := self._server.write_error():
            self._close_shop(self._server, f"nats-server could not write and was stopped: {error}")
        elif not self._server.alive():
            self._again(self._server)
        elif self._state.phase != "ready":
            self._check_ready(self._server)

    def _begin(self) -> None:
        self._layout.take_reserve()
        running = self._fence.holder()
        if running is not None:
            self._server = Server.adopt(self._layout, self._fence, running)
            _say(f"took over nats-server, process {running}")
            return
        try:
            self._server = Server.spawn(
                self._layout, self._fence, str(self._binary.path), self._settings, self._state.port
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._failed(f"nats-server cannot be started: {error}")

    def _check_ready(self, server: Server) -> None:
        port = server.port()
        if port is None:
            return
        address = Address("127.0.0.1", port, "admin", credentials(self._layout)["admin"])
        try:
            greeting = probe(address, jetstream=True)
        except ProbeError as error:
            # Listening comes before JetStream; only a server that knows other passwords will never be ready.
            if "authorization" in str(error).lower() and not self._state.problem:
                self._report(
                    problem=f"the nats-server that runs there (process {server.pid}) knows other passwords than "
                    f"{self._layout.credentials}: was that file removed? End the process and start again"
                )
            return
        self._note_version(greeting.version)
        self._report(phase="ready", server=server.pid, port=port, version=greeting.version, problem="")
        _say(f"nats-server {greeting.version} is ready on port {port}, process {server.pid}")

    def _close_shop(self, server: Server, problem: str) -> None:
        """The disk takes no more: tell those who wait at once, and stop what can store nothing."""
        _say(problem)
        self._report(phase="full", server=None, problem=problem)
        self._layout.reserve.unlink(missing_ok=True)
        server.stop()
        self._server = None
        self._next_start = time.monotonic() + max(0.5, self._pause())

    def _await_space(self) -> None:
        if time.monotonic() >= self._next_start and self._layout.free() >= MIN_FREE:
            _say("there is space again")
            self._report(phase="starting", problem="")

    def _again(self, server: Server) -> None:
        """The server ended and nobody had asked it to."""
        ended = server.ended()
        _say(ended)
        self._server = None
        if self._state.phase == "ready":
            self._next_start = time.monotonic() + self._pause()
            self._report(phase="starting", server=None, restarts=self._state.restarts + 1)
        elif self._state.port is not None and "address already in use" in ended:
            _say(f"port {self._state.port} is taken: asking for another")
            self._report(port=None)
        else:
            self._failed(ended)

    def _failed(self, problem: str) -> None:
        """It does not even come up: tell, and try again after a pause for those who stay."""
        _say(problem)
        self._next_start = time.monotonic() + max(0.5, self._pause())
        self._report(phase="starting", server=None, problem=problem)

    def _pause(self) -> float:
        now = time.monotonic()
        self._crashes = [*(crash for crash in self._crashes if now - crash < _CALM), now]
        return 0.0 if len(self._crashes) == 1 else float(min(5.0, 0.1 * 2 ** len(self._crashes)))

    def _leave(self) -> None:
        # `_clients` is held exclusively here: whoever comes now waits until it is released, which comes last.
        running = self._server
        if running is None and (pid := self._fence.holder()) is not None:
            running = Server.adopt(self._layout, self._fence, pid)
        if running is not None:
            running.stop()
        self._layout.reserve.unlink(missing_ok=True)
        _say("nobody is left: stopped")
        self._lock.close()
        self._clients.release()

    def _note_version(self, version: str) -> None:
        file = self._layout.data_version
        with suppress(OSError):  # Told again at the next start.
            if not file.exists() or numbers(file.read_text()) < numbers(version):
                write_private(file, version + "\n")

    def _report(self, **changes: object) -> None:
        self._state = replace(self._state, at=time.time(), **changes)  # type: ignore[arg-type]
        try:
            self._state.write(self._layout.state)
            self._told = True
        except OSError as error:  # A full disk: the server must not lose its supervisor over it.
            if self._told:
                _say(f"{self._layout.state} cannot be written: {error}")
            self._told = False


def main(arguments: list[str]) -> int:
    """`DIRECTORY SETTINGS BINARY VERSION`: returns as soon as the detached supervisor holds its lock.

    What went wrong before that is on stderr; exit code 0 also when another supervisor was there first.
    """
    layout = Layout(Path(arguments[0]))
    settings = BrokerSettings(**json.loads(arguments[1]))
    binary = Binary(Path(arguments[2]), arguments[3])
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(told, 1) else 1
    _detach(layout)
    lock = ProcessLock(layout.supervisor_lock)
    first = lock.take()
    supervisor = Supervisor(layout, settings, binary, lock) if first else None
    os.write(tell, b".")
    os.close(tell)
    os.close(told)
    if supervisor is not None:
        _open_log(layout.supervisor_log)
        supervisor.run()
    return 0


def _detach(layout: Layout) -> None:
    """Nothing of whoever started us stays: terminal, signals, working directory, files, core dumps."""
    os.setsid()
    os.umask(0o077)
    os.chdir(layout.root)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # A service manager sends SIGTERM to a whole group of processes: the broker is then still needed by those who
    # finish their work. A handler, not SIG_IGN, which nats-server would inherit.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)


def _open_log(path: Path) -> None:
    keep = os.O_TRUNC if path.exists() and path.stat().st_size > _LOG_LIMIT else os.O_APPEND
    file = os.open(path, os.O_WRONLY | os.O_CREAT | keep | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _say(text: str) -> None:
    with suppress(OSError):  # A full disk again.
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)
