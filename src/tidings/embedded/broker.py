"""The client's side: join the broker of a directory, stay joined, and know where it answers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tidings.errors import BrokerError, Closed, StoreFull
from tidings.permissions import User

from .answering import answering
from .binary import check_data, find_binary
from .config import Address, BrokerSettings
from .locate import Layout, has_run, is_project, project_directory, unusable
from .locks import FileLock, ProcessLock, hold_lifeline, holder_of
from .probe import ProbeError
from .state import State

log = logging.getLogger("tidings.embedded")

PATIENCE = 30.0
"""Seconds without any sign of progress (server log, supervisor's report) after which waiting ends with an error."""
_WATCH = 0.5


async def start(directory: Path, *, user: User = "work", settings: BrokerSettings | None = None) -> Broker:
    """Join the broker of `directory`, starting it if nobody has; it runs until the last one who joined has left.

    Safe from any number of processes at once, and repeatedly within one. Returns when the server answers, however long
    it needs to recover its data, as long as its log grows. Cancelled, it leaves nothing behind. Raises `BrokerError`.
    """
    broker = Broker(Layout.of(directory), user, settings or BrokerSettings())
    new = not has_run(directory)
    try:
        await broker._join()
        if new:
            _tell_new(broker.directory)
    except BaseException:
        await broker.close()
        raise
    return broker


def _tell_new(directory: Path) -> None:
    """A folder that nobody has chosen is told as a trouble is: from another one there would be another broker."""
    if directory == project_directory() and not is_project(directory.parent):
        log.warning(
            "a new broker in %s: no folder above has a pyproject.toml or .git, so each folder that something is "
            "started in has its own (TIDINGS_URL=embedded:DIR chooses one for all)",
            directory,
        )
    else:
        log.info("a new broker in %s", directory)


class Broker:
    """A share in the running broker of one directory; made by `start`.

    While it is held the server is kept running: it is restarted when it dies, and so is its supervisor.
    """

    def __init__(self, layout: Layout, user: User, settings: BrokerSettings) -> None:
        self._layout = layout
        self._user = user
        self._settings = settings
        self._clients = FileLock(layout.clients_lock)
        self._supervisor: ProcessLock | None = None
        self._lifeline: int | None = None
        self._address: Address | None = None
        self._version = ""
        self._watch: asyncio.Task[None] | None = None

    @property
    def directory(self) -> Path:
        return self._layout.root

    @property
    def address(self) -> Address:
        """Where it answered last; after a lost connection ask `locate`."""
        if self._address is None:
            raise Closed("the broker was closed")
        return self._address

    @property
    def url(self) -> str:
        """`address` as one URL with the password: not for printing."""
        return self.address.url

    @property
    def version(self) -> str:
        """Of nats-server."""
        return self._version

    async def locate(self) -> Address:
        """Where it answers now: waits until it is up again after a crash, and notices when it has moved.

        Raises `BrokerError` quoting the server's log when it fails to come up, or after `PATIENCE` seconds without
        progress, and `StoreFull` at once while it is stopped for want of space. Cancelling is safe.
        """
        asked, patience = time.time(), _Patience(self._layout)
        while True:
            state = State.read(self._layout.state)
            running = self._supervised_by()
            if running is None:
                await self._ensure_supervisor()
            elif state is not None and state.supervisor == running:
                if state.phase == "full":
                    raise StoreFull(f"the embedded broker is stopped and comes back with space: {state.problem}")
                if state.problem and state.at >= asked:
                    raise BrokerError(f"the embedded broker in {self.directory} does not come up: {state.problem}")
                if state.phase == "ready" and await self._reached():
                    self._version = state.version
                    return self.address
            if patience.over(state):
                raise BrokerError(self._stuck(state))
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Give up the share; the last one out stops the server, within about the linger time. Idempotent."""
        # All of it before the first await: also a cancelled close has given up the share.
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        self._address = None
        self._clients.release()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        if watch is not None:
            await asyncio.gather(watch, return_exceptions=True)

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _join(self) -> None:
        try:
            await asyncio.to_thread(self._layout.prepare)
            if not await _acquire(self._clients, shared=True):
                raise BrokerError(f"the broker in {self.directory} is still stopping; try again in a moment")
            self._lifeline = hold_lifeline(self._layout.lifeline)
            self._supervisor = ProcessLock(self._layout.supervisor_lock)
        except OSError as error:
            raise unusable(self.directory, error) from error
        await self.locate()
        self._compare_settings()
        self._watch = asyncio.create_task(self._keep_supervised(), name="tidings broker watch")

    def _supervised_by(self) -> int | None:
        if self._supervisor is None:
            raise Closed("the broker was closed")
        return self._supervisor.holder()

    async def _reached(self) -> bool:
        try:
            address = await asyncio.to_thread(answering, self._layout, self._user)
        except ProbeError:
            return False
        self._supervised_by()  # closed meanwhile?
        self._address = address
        return True

    async def _ensure_supervisor(self) -> None:
        turn = FileLock(self._layout.start_lock)
        if not await _acquire(turn):
            return
        try:
            if self._supervised_by() is None:
                await asyncio.to_thread(_launch, self._layout, self._settings)
        finally:
            turn.release()

    async def _keep_supervised(self) -> None:
        """Notice that the supervisor was killed, and start another one."""
        pause = _WATCH
        while True:
            await asyncio.sleep(pause)
            if self._supervised_by() is not None:
                pause = _WATCH
                continue
            log.warning("the supervisor of the broker in %s is gone: starting another", self.directory)
            try:
                await self._ensure_supervisor()
            except (BrokerError, OSError) as error:
                pause = min(30.0, pause * 2)
                log.error("%s", error)

    def _compare_settings(self) -> None:
        state = State.read(self._layout.state)
        wanted = self._settings.dump()
        other = {} if state is None else {k: v for k, v in state.settings.items() if wanted.get(k) != v}
        if other:
            log.warning(
                "the broker in %s was started by another process with other settings, which stay: %s",
                self.directory,
                ", ".join(f"{name}={value!r}" for name, value in other.items()),
            )

    def _stuck(self, state: State | None) -> str:
        last = state.problem if state is not None and state.problem else "its log does not grow any more"
        return (
            f"the embedded broker in {self.directory} was not ready after {PATIENCE:g} s without progress: {last}. "
            f"See {self._layout.server_log} and {self._layout.supervisor_log}"
        )


class _Patience:
    """Runs out when for `PATIENCE` seconds neither the supervisor nor the server has shown any progress."""

    def __init__(self, layout: Layout) -> None:
        self._log = layout.server_log
        self._seen: object = None
        self._since = time.monotonic()

    def over(self, state: State | None) -> bool:
        try:
            seen = (state, self._log.stat().st_size)
        except OSError:
            seen = (state, 0)
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since > PATIENCE


async def _acquire(lock: FileLock, *, shared: bool = False) -> bool:
    """Take it within `PATIENCE` seconds; without a thread, which a cancelled caller would leave waiting."""
    deadline = time.monotonic() + PATIENCE
    while not lock.try_acquire(shared=shared):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _launch(layout: Layout, settings: BrokerSettings) -> None:
    """Start a supervisor; returns when one holds the lock. It is nobody's child: it has detached by then."""
    binary = find_binary(settings.binary)
    if holder_of(layout.fence) is None:  # A server that runs is only looked after, whatever disk and data are like.
        check_data(layout.data_version, binary)
        layout.check_space()
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(layout.root)]
    try:
        started = subprocess.run(
            [*command, json.dumps(settings.dump()), str(binary.path), binary.version],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"the broker's supervisor could not be started with {sys.executable}: {error}") from error
    if started.returncode != 0:
        said = started.stderr.decode(errors="replace").strip()[-2000:]
        raise BrokerError(f"the broker's supervisor in {layout.root} could not be started:\n{said}")
