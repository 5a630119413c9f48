"""The kernel's locks as the broker uses them, between real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tidings.embedded.locks import (
    FileLock,
    ProcessLock,
    hold_lifeline,
    lifeline_end,
    signal_holder,
)

HOLD = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX)
os.set_inheritable(file, True)
os.execv(sys.executable, [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"])
"""

TIE = """
import os, sys
from tidings.embedded.locks import tie_to_lifeline
tie_to_lifeline(int(sys.argv[1]))
print("tied", flush=True)
os.execvp("sleep", ["sleep", "60"])
"""


@contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that took the lock and then became another program."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_shared_locks_live_side_by_side_and_keep_the_exclusive_one_out(tmp_path: Path) -> None:
    """Two shares coexist in one process; exclusive is only had when both are given up, releases being idempotent."""
    path = tmp_path / "lock"
    one, two, all_of_it = FileLock(path), FileLock(path), FileLock(path)
    assert one.try_acquire(shared=True)
    assert two.try_acquire(shared=True)
    assert not all_of_it.try_acquire()
    one.release()
    one.release()
    assert not all_of_it.try_acquire()
    two.release()
    assert all_of_it.try_acquire()
    assert not one.try_acquire(shared=True)
    all_of_it.release()


def test_a_share_is_kept_by_whoever_inherited_the_file(tmp_path: Path) -> None:
    """Released here, it stays locked until the process that inherited the open file is gone."""
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert lock.try_acquire(shared=True)
    assert lock._file is not None
    with subprocess.Popen(["sleep", "60"], pass_fds=(lock._file,)) as heir:
        lock.release()
        assert not other.try_acquire()
        heir.kill()
    assert other.try_acquire()
    other.release()


def test_the_kernel_names_the_holder_over_exec_and_forgets_it_at_death(tmp_path: Path) -> None:
    """The holder's pid comes from the kernel, survives its exec, and is gone with `kill -9`; asking takes nothing."""
    path = tmp_path / "lock"
    lock = ProcessLock(path)
    assert lock.holder() is None
    with holding(path) as process:
        assert lock.holder() == process.pid
        assert not lock.take()
        process.kill()
        process.wait()
        assert lock.holder() is None
        assert lock.take()
    lock.close()
    lock.close()


def test_a_signal_goes_to_the_holder_and_to_nobody_else(tmp_path: Path) -> None:
    """A pid that does not hold the lock (any more) is never signalled."""
    path = tmp_path / "lock"
    lock = ProcessLock(path)
    with holding(path) as process:
        assert not signal_holder(lock, os.getpid(), signal.SIGKILL)
        assert signal_holder(lock, process.pid, signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
        assert not signal_holder(lock, process.pid, signal.SIGTERM)
    lock.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to a lifeline")
def test_the_last_to_let_go_of_a_lifeline_ends_the_tied_process(tmp_path: Path) -> None:
    """One of two holders changes nothing; with the second the kernel sends SIGTERM, at once."""
    path = tmp_path / "lifeline"
    one, two = hold_lifeline(path), hold_lifeline(path)
    with lifeline_end(path) as end:
        process = subprocess.Popen([sys.executable, "-c", TIE, str(end)], pass_fds=(end,), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"tied\n"
    try:
        os.close(one)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        os.close(two)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
