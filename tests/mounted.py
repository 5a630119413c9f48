"""File systems of a test's own: a small one that can be filled, and one whose disk can be copied in the middle of work.

Both need the right to mount (`needs.may_mount`). They are unmounted whatever happens inside.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1024 * 1024


@contextmanager
def tmpfs(place: Path, mebibytes: int) -> Iterator[Path]:
    """A file system in memory with no more room than that."""
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", place)
    with unmounted_at_the_end(place):
        yield place


def make_ext4(image: Path, mebibytes: int) -> None:
    """A file with an empty ext4 in it."""
    with image.open("wb") as file:
        file.truncate(mebibytes * MIB)
    run("mkfs.ext4", "-q", "-F", image)


@contextmanager
def ext4(image: Path, place: Path) -> Iterator[Path]:
    """The image, mounted. Its journal is written when somebody syncs, not every five seconds."""
    place.mkdir()
    run("mount", "-o", "loop,commit=600", image, place)
    with unmounted_at_the_end(place):
        yield place


def copy_disk(image: Path, copy: Path) -> None:
    """What would be on the disk if the power failed now: the image without what only the page cache above it has."""
    run("cp", "--sparse=always", image, copy)


@contextmanager
def unmounted_at_the_end(place: Path) -> Iterator[None]:
    """Waits for those who still use it; what they keep busy for too long goes away when they do."""
    try:
        yield
    finally:
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", place], stderr=subprocess.DEVNULL).returncode:
            if time.monotonic() > deadline:
                run("umount", "--lazy", place)
                break
            time.sleep(0.05)


def fill(place: Path, leave: int = 0) -> Path:
    """Use up all room but that many bytes with one file; returns it."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while not leave or shutil.disk_usage(place).free > leave:
                file.write(b"\0" * 65536)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return ballast


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
