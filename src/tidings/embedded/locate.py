"""Where an embedded broker lives: its directory, and what is where inside."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tidings.errors import BrokerError

MIN_FREE = 32 * 1024 * 1024
"""Bytes below which a broker is not started: it would come up and then refuse the first message."""
TOO_LITTLE = 8 * 1024 * 1024
"""Bytes below which a running one is stopped: a write that fails leaves nats-server unable to store anything until it
is started again, and stopping in order needs a little room itself."""
RESERVE = 4 * 1024 * 1024
"""Bytes kept for that moment: a server that stops on a full disk forgets what its groups have acknowledged."""


def project_directory(start: Path | None = None) -> Path:
    """`.tidings` at the project root: the nearest folder upwards from `start` (default: the working directory) with a
    `pyproject.toml` or `.git`, else `start` itself."""
    origin = (start or Path.cwd()).resolve()
    return next(filter(is_project, (origin, *origin.parents)), origin) / ".tidings"


def is_project(folder: Path) -> bool:
    """Whether it is the root of one."""
    return (folder / "pyproject.toml").is_file() or (folder / ".git").exists()


def has_run(directory: Path) -> bool:
    """Whether a broker has ever kept its data there. Makes nothing."""
    return Layout.of(directory).data_version.exists()


@dataclass(frozen=True)
class Layout:
    """The files of one broker. Only `data` is worth keeping; everything else is made again."""

    root: Path

    @classmethod
    def of(cls, directory: Path) -> Layout:
        return cls(directory.expanduser().absolute())

    @property
    def start_lock(self) -> Path:
        """Held for the moment it takes to start a supervisor, so that many who come at once start one."""
        return self.root / "locks" / "start.lock"

    @property
    def clients_lock(self) -> Path:
        """Shared by everybody who uses the broker; exclusive to the supervisor while it takes the broker down."""
        return self.root / "locks" / "clients.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor for as long as it lives."""
        return self.root / "locks" / "supervisor.lock"

    @property
    def fence(self) -> Path:
        """Held by nats-server itself for exactly as long as it lives: no second one on the same data, ever."""
        return self.root / "locks" / "server.fence"

    @property
    def lifeline(self) -> Path:
        """Held open by everybody who uses the broker and by the supervisor; the broker does not outlive them all."""
        return self.root / "locks" / "lifeline"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def config(self) -> Path:
        return self.run / "nats-server.conf"

    @property
    def credentials(self) -> Path:
        return self.run / "credentials.json"

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def data_version(self) -> Path:
        """The newest server version that has written to `data`."""
        return self.root / "data.version"

    @property
    def reserve(self) -> Path:
        """Takes room while a server runs, and gives it back to a server that has to stop on a full disk."""
        return self.run / "reserve"

    @property
    def server_log(self) -> Path:
        return self.root / "log" / "nats-server.log"

    @property
    def console_log(self) -> Path:
        """What nats-server says before its log is open, and when it panics."""
        return self.root / "log" / "console.log"

    @property
    def supervisor_log(self) -> Path:
        return self.root / "log" / "supervisor.log"

    def prepare(self) -> None:
        """Make the folders, for this user only; idempotent. Raises `BrokerError` that says why it cannot be used."""
        if "\n" in str(self.root):
            raise BrokerError(f"the broker's directory {str(self.root)!r} has a line break in its name: choose another")
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.root.stat().st_uid
            if owner != os.geteuid():
                raise BrokerError(
                    f"{self.root} belongs to user {owner}, this process runs as user {os.geteuid()}: run as its owner, "
                    "or choose another directory ('embedded:./dir')"
                )
            for folder in (self.root, *(self.root / name for name in ("locks", "run", "log", "data"))):
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise unusable(self.root, error) from error

    def check_space(self) -> None:
        """Raise `BrokerError` when the disk has no room for a broker to work in."""
        if self.free() < MIN_FREE:
            raise BrokerError(f"{self.no_space()}, or choose another directory ('embedded:./dir')")

    def take_reserve(self) -> None:
        """Set some room aside, if there is any; idempotent."""
        with suppress(OSError), self.reserve.open("wb") as file:
            file.write(bytes(RESERVE))

    def free(self) -> int:
        """Bytes left on the disk for this user; enough, if the folder is gone: that is another trouble."""
        try:
            return shutil.disk_usage(self.root).free
        except OSError:
            return MIN_FREE

    def no_space(self) -> str:
        """What to tell whoever waits for space."""
        return (
            f"the disk that holds {self.root} is full ({self.free() // 1024:,} KiB left, a broker needs "
            f"{MIN_FREE // 1024:,} KiB): free some space"
        )


def unusable(directory: Path, error: OSError) -> BrokerError:
    """The error in words for somebody who chose this directory."""
    reasons = {
        errno.EACCES: "this user may not write there",
        errno.EPERM: "this user or file system does not allow it",
        errno.EROFS: "it is on a read-only file system",
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.ENOTDIR: "a part of the path is a file",
        errno.EEXIST: "a part of the path is a file",
        errno.ENOLCK: "its file system has no locks (a network mount?)",
        errno.ENOTSUP: "its file system has no locks or pipes (a network mount?)",
    }
    why = reasons.get(error.errno or 0, error.strerror or str(error))
    return BrokerError(
        f"the embedded broker cannot use {directory}: {why} ({error}). "
        "Mend that, or choose a directory on a local disk ('embedded:./dir')"
    )
