"""A port in front of a server, where connections can be cut and frozen."""

from __future__ import annotations

import asyncio


class Proxy:
    """A port in front of a server of this machine, which can lose answers."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.frozen = False
        """Takes everything and passes nothing on."""
        self.cut_at = b""
        """Passes this on to the server, and ends the connection, once, instead of the answer to it."""
        self.cut_before = b""
        """Ends the connection, once, instead of passing this on."""

    async def __aenter__(self) -> Proxy:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._listener.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, up_writer]
        cut = asyncio.Event()
        self._tasks += [
            asyncio.create_task(self._up(reader, up_writer, cut)),
            asyncio.create_task(self._down(up_reader, writer, cut)),
        ]

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if self.cut_before and self.cut_before in data:
                self.cut_before = b""
                break
            if self.cut_at and self.cut_at in data:
                self.cut_at = b""
                cut.set()
            if not self.frozen:
                writer.write(data)
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while (data := await reader.read(65536)) and not cut.is_set():
            if not self.frozen:
                writer.write(data)
        writer.close()
