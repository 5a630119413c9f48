"""Make an environment below `.cache`: what only a first start needs. Standard library only.

uv makes it where there is one, fetched with pip into `.cache` if need be (`pip install --target` works where pip
refuses to touch the system's own Python). Where uv cannot, venv and pip do, more slowly.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from bootstrap import CACHE, ROOT, Environment

LOG = Path(CACHE) / "install.log"
FETCHED_UV = Path(CACHE) / "uv"

# Settings of the user that make no sense for an installation into a folder of ours.
PIP_SETTINGS = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


class InstallError(Exception):
    """The environment cannot be made. The text says why, as far as we know it, and what to do."""


def prepare(environment: Environment) -> None:
    """Return when the environment is ready, whoever made it; end the program with a sentence if it cannot be made."""
    began = time.monotonic()
    say = Talk(environment.name)
    say(f"installing what it needs below {CACHE} (remove that folder to undo it)")
    signal.signal(signal.SIGTERM, _stop)
    try:
        with open_lock(say) as lock:
            if not environment.is_ready():
                Installation(environment, say, lock).make()
    except InstallError as reason:
        sys.exit(f"{environment.name}: {reason}")
    except OSError as error:
        sys.exit(f"{environment.name}: {error}. Is {CACHE} yours, and is there space? Removing it is safe.")
    except KeyboardInterrupt:
        say("interrupted; the next start begins again")
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say(f"ready after {time.monotonic() - began:.1f} s")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """As an exception, so that the installer we wait for is ended too."""
    sys.exit(128 + number)


class Talk:
    """Sentences to the person at the terminal. On stderr: stdout belongs to what is started afterwards."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, sentence: str) -> None:
        print(f"{self._name}: {sentence}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """Say what begins, and how long it took if it worked."""
        self(f"{doing} ...")
        began = time.monotonic()
        yield
        self(f"  done in {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def open_lock(say: Talk) -> Iterator[IO[str]]:
    """Hold the lock of `.cache`, waiting for whoever holds it.

    A kernel lock, gone with its last holder. The installers we start inherit it: should we be killed, nobody begins
    anew while one of them is still writing.
    """
    try:
        Path(CACHE).mkdir(exist_ok=True)
        lock = open(Path(CACHE) / "lock", "a")  # noqa: SIM115  (closed by the `with` below)
    except OSError as error:
        raise InstallError(f"cannot write to {CACHE} ({error.strerror}): make it a folder of yours") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another start is installing; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


class Installation:
    """The making of one environment, under the lock."""

    def __init__(self, environment: Environment, say: Talk, lock: IO[str]) -> None:
        self._environment = environment
        self._say = say
        self._lock = lock
        LOG.write_text("")

    def make(self) -> None:
        uv = self._working_uv(shutil.which("uv")) or self._fetched_uv()
        if uv is None or not self._made_by_uv(uv):
            self._make_by_pip()
        Path(self._environment.stamp).touch()

    def _made_by_uv(self, uv: str) -> bool:
        """False when uv cannot, which need not be the last word: pip may know an index or a proxy that uv does not."""
        path, python = self._environment.path, self._environment.python
        variables = {"UV_CACHE_DIR": self._uv_cache(uv), "UV_PYTHON_DOWNLOADS": "never"}
        try:
            self._remove_remains()
            with self._say.step("making an environment with uv"):
                self._run([uv, "venv", "--quiet", "--no-project", "--python", sys.executable, path], variables)
            with self._say.step("installing the packages with uv"):
                self._run([uv, "pip", "install", "--python", python, *self._requirements()], variables)
        except InstallError as reason:
            self._say(f"{reason}")
            self._say("uv could not do it; trying pip")
            return False
        return True

    def _make_by_pip(self) -> None:
        """With the pip we have, since the venv package that brings another is often missing (Debian)."""
        self._remove_remains()
        path, python = self._environment.path, self._environment.python
        have_pip = self._works([sys.executable, "-m", "pip", "--version"])
        pip = [sys.executable, "-m", "pip", "--python", python] if have_pip else [python, "-m", "pip"]
        with self._say.step("making an environment with venv"):
            self._run([sys.executable, "-m", "venv", *(["--without-pip"] if have_pip else []), path])
        with self._say.step("installing the packages with pip (takes a minute)"):
            self._run([*pip, "install", *self._requirements()], PIP_SETTINGS)

    def _fetched_uv(self) -> str | None:
        """The uv in `.cache`, fetched if it is not there or no longer starts; None if it cannot be had."""
        binary = str(FETCHED_UV / "bin" / "uv")
        if self._working_uv(binary):
            return binary
        shutil.rmtree(FETCHED_UV, ignore_errors=True)
        fetch = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(FETCHED_UV), "uv"]
        try:
            with self._say.step("fetching uv, the installer, with pip"):
                self._run(fetch, PIP_SETTINGS)
        except InstallError:
            self._say("uv cannot be had")
        return self._working_uv(binary)

    def _working_uv(self, uv: str | None) -> str | None:
        return uv if uv and self._works([uv, "--version"]) else None

    def _uv_cache(self, uv: str) -> str:
        """The user's own cache if the user's own uv can write to it, else one below `.cache`."""
        if named := os.environ.get("UV_CACHE_DIR"):
            return named
        if not uv.startswith(CACHE):
            answer = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=False).stdout.strip()
            with contextlib.suppress(OSError):
                Path(answer).mkdir(parents=True, exist_ok=True)
            if answer and os.access(answer, os.W_OK):
                return answer
        return str(Path(CACHE) / "uv-cache")

    def _requirements(self) -> list[str]:
        """This project as it lies here, with its extra, and what the dependency group adds."""
        with open(Path(ROOT) / "pyproject.toml", "rb") as file:
            groups = tomllib.load(file).get("dependency-groups", {})
        group = self._environment.group
        return ["--editable", f"{ROOT}[{self._environment.extra}]", *(groups[group] if group else [])]

    def _remove_remains(self) -> None:
        """What an interrupted start left of this environment. Others may be in use and stay."""
        if os.path.lexists(self._environment.path):
            shutil.rmtree(self._environment.path)

    def _works(self, command: Sequence[str]) -> bool:
        try:
            return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False

    def _run(self, command: Sequence[str], variables: dict[str, str] | None = None) -> None:
        """Run one installer to its end. Its progress goes to the terminal; without one, its words go to the log."""
        to_terminal = sys.stderr.isatty()
        with LOG.open("ab") as log:
            began = log.tell()
            output = sys.stderr if to_terminal else log
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(variables or {})},
                pass_fds=[self._lock.fileno()],
                check=False,
            ).returncode
        if status != 0:
            words = LOG.read_bytes()[began:].decode(errors="replace").strip()
            raise InstallError("\n".join(filter(None, [_explain(command, status), _last_lines(words)])))


def _explain(command: Sequence[str], status: int) -> str:
    return (
        f"`{' '.join(command)}` failed (status {status}). Likely causes: no way to the package index "
        "(network, proxy, certificate), a full disk, no pip (apt-get install python3-pip), "
        "or a package without a build for this machine."
    )


def _last_lines(words: str, limit: int = 20) -> str:
    return "\n".join(f"    {line}" for line in words.splitlines()[-limit:])
