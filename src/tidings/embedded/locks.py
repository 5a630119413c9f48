"""Who is there, known by the kernel: nothing here has to be cleaned up after a crash.

Three means, each for one question:

- `FileLock` (flock) belongs to an open file, so that several brokers of one process, and processes forked from it,
  each hold their share: *is anybody left?*
- `ProcessLock` (a POSIX record lock) belongs to exactly one process, survives its `exec`, ends with its death, and the
  kernel tells which process it is: *who supervises, who serves?* A pid read from it is never a stale one.
- `lifeline` (a FIFO) ties a process to all who hold it open: when the last of them is gone, the kernel itself sends
  SIGTERM to the one that was tied. It needs Linux; elsewhere it ties nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class FileLock:
    """An flock, shared or exclusive, held until `release` or until every process that has the open file is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take it if it is free; never waits."""
        file = os.open(self._path, _FLAGS, 0o600)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return True

    def release(self) -> None:
        """Give up this share; idempotent. Processes forked meanwhile keep theirs, hence no LOCK_UN."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


# struct flock as the kernel lays it out where Tidings runs; each has the fields in another order.
if sys.platform == "darwin":
    _FLOCK = "qqihh"  # l_start, l_len, l_pid, l_type, l_whence
    _QUERY = (0, 0, 0, fcntl.F_WRLCK, 0)
    _PID, _TYPE = 2, 3
else:
    _FLOCK = "hhqqi4x"  # l_type, l_whence, l_start, l_len, l_pid
    _QUERY = (fcntl.F_WRLCK, 0, 0, 0, 0)
    _PID, _TYPE = 4, 0


class ProcessLock:
    """A lock that one process holds for as long as it lives; asking who holds it takes nothing.

    The kernel drops the lock when its process closes *any* descriptor of the file: a holder keeps this one object and
    opens the file nowhere else.
    """

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, _FLAGS, 0o600)

    def take(self) -> bool:
        """Take it for the calling process if it is free; never waits."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def holder(self) -> int | None:
        """The pid of the *other* process that holds it now, or None."""
        answer = struct.unpack(_FLOCK, fcntl.fcntl(self.file, fcntl.F_GETLK, struct.pack(_FLOCK, *_QUERY)))
        return None if answer[_TYPE] == fcntl.F_UNLCK else int(answer[_PID])

    def close(self) -> None:
        """Give it up, if this process holds it; idempotent."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def holder_of(path: Path) -> int | None:
    """The pid of the other process that holds the `ProcessLock` at `path`, or None; makes no file.

    Not for the holder itself, which would lose the lock by it.
    """
    if not path.exists():
        return None
    lock = ProcessLock(path)
    try:
        return lock.holder()
    finally:
        lock.close()


def hold_lifeline(path: Path) -> int:
    """Hold the lifeline until the returned descriptor is closed, however that comes about."""
    with suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    # Both ends: opening one end alone waits (or fails) while nobody has the other.
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


@contextmanager
def lifeline_end(path: Path) -> Iterator[int]:
    """The end that a process to be tied inherits; the descriptor is closed here afterwards."""
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield end
    finally:
        os.close(end)


def tie_to_lifeline(end: int) -> None:
    """Called in the new process before `exec`: SIGTERM to it when the last holder of the lifeline is gone.

    The kernel keeps the process itself, not its number, as the receiver: no other process can ever be hit.
    """
    if sys.platform == "linux":
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(end, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)


def signal_holder(lock: ProcessLock, pid: int, number: int) -> bool:
    """Send a signal to process `pid` if it is still the one that holds `lock`; returns whether it was sent."""
    try:
        if sys.platform != "linux":
            return lock.holder() == pid and os.kill(pid, number) is None
        process = os.pidfd_open(pid)
        try:
            # The handle stands for one process for ever; that it is the right one is asked after it was opened.
            if lock.holder() != pid:
                return False
            signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)
    except ProcessLookupError:
        return False
    return True
