"""A real nats-server for tests: started on a free port, killed and started again on the same port and data."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from server_process import ServerProcess
from tidings.embedded import find_binary
from tidings.engines.nats import Address


class NatsServer(ServerProcess):
    """One server of its own directory. `config` adds to, or replaces, what it is told; `more` is text in the server's
    own format, for its end."""

    def __init__(self, directory: Path, more: str = "", **config: Any) -> None:
        super().__init__(directory)
        self.port = -1
        self._more = more
        self._config = config

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def locate(self) -> Address:
        return Address((self.url,))

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for stale in self.directory.glob("*.ports"):
            stale.unlink()
        config = {
            "listen": f"127.0.0.1:{self.port}",
            "ports_file_dir": str(self.directory),
            "jetstream": {"store_dir": str(self.directory / "data"), "sync_interval": "always"},
        }
        file = self.directory / "server.conf"
        told = [f"{name}: {json.dumps(value)}" for name, value in (config | self._config).items()]
        file.write_text("\n".join([*told, self._more]))
        self.launch([str(find_binary(None).path), "-c", str(file)])
        async with asyncio.timeout(20):
            while not (port := self._read_port()):
                self.check()
                await asyncio.sleep(0.01)
        self.port = port

    def _read_port(self) -> int:
        for file in self.directory.glob("*.ports"):
            try:
                return int(json.loads(file.read_text())["nats"][0].rpartition(":")[2])
            except (ValueError, KeyError, IndexError):
                return 0  # still being written
        return 0
