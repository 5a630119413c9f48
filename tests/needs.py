"""What some tests need from the machine: a marker each, how it is found, and how to get it.

A test says what it needs with `@pytest.mark.<marker>`. `tests/conftest.py` leaves the test out where that is missing,
with one line that says so, and refuses to run in continuous integration, where nothing may be left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Need:
    marker: str
    """The pytest marker, registered in `pyproject.toml`."""
    lacking: str
    """What to say when it is not there."""
    remedy: str
    """What to type to get it."""
    find: Callable[[], str | None]
    """Where it was found, or None."""

    def notice(self, count: int | None = None) -> str:
        tests = f"{self.marker} tests" if count is None else f"{count} {self.marker} test{'s' * (count != 1)}"
        return f"left out: {tests} ({self.lacking}): {self.remedy}"


def chromium() -> str | None:
    """The browser of the browser tests: `TIDINGS_CHROMIUM`, else the first of the usual names on PATH."""
    named = os.environ.get("TIDINGS_CHROMIUM")
    candidates = (named,) if named else CHROMIUM_NAMES
    return next((found for name in candidates if (found := shutil.which(name))), None)


@cache
def may_mount() -> str | None:
    """The folder in which a mount was tried and worked, for tests that fill a small disk or cut the power of one."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], stderr=subprocess.DEVNULL).returncode:
            return None
        subprocess.run(["umount", folder], check=True)
        return folder


def redis_tools() -> str | None:
    """The machine's own redis-server, where redis-cli is as well."""
    return shutil.which("redis-server") if shutil.which("redis-cli") else None


NEEDS = (
    Need("browser", "no chromium", "apt-get install chromium, or set TIDINGS_CHROMIUM", chromium),
    Need("mount", "no right to mount", "run as root, with loop devices and mkfs.ext4", may_mount),
    Need("redis", "no redis-server or no redis-cli", "apt-get install redis-server redis-tools", redis_tools),
)


def missing() -> list[Need]:
    return [need for need in NEEDS if need.find() is None]


def nothing_may_be_left_out() -> bool:
    """True in continuous integration, which says so with `CI=true`."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}
