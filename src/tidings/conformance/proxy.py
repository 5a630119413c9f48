"""A TCP proxy with faults on demand, to stand between an engine and its server.

It knows no protocol: whoever wants single answers to vanish gives it a function that cuts a stream into frames, and one
that says which frames are answers to a publish.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

Target: TypeAlias = Callable[[], Awaitable[tuple[str, int]]]
"""Where to connect to, asked for each connection."""
Frames: TypeAlias = Callable[[bytearray], list[bytes]]
"""Takes the complete frames off the front of a buffer."""

_CHUNK: Final = 64 * 1024


class Proxy:
    """Listens on a port of its own and passes on what comes, as long as nothing else is asked of it."""

    def __init__(self, target: Target, frames: Frames, is_receipt: Callable[[bytes], bool]) -> None:
        self.port = 0
        self.lost = 0
        """Answers that were swallowed."""
        self._target = target
        self._frames = frames
        self._is_receipt = is_receipt
        self._server: asyncio.Server | None = None
        self._wires: set[_Wire] = set()
        self._refusing = False
        self._delay = 0.0
        self._left: int | None = None
        self._losing = 0

    async def start(self) -> None:
        """Listen; the port is chosen by the system."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Break everything and listen no more."""
        self._refusing = True
        if self._server is not None:
            self._server.close()
        tasks = [task for wire in self._wires for task in wire.tasks]
        self.drop()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drop(self) -> None:
        for wire in list(self._wires):
            wire.drop()

    def cut(self) -> None:
        self._refusing = True
        self.drop()

    def mend(self) -> None:
        self._refusing = False

    def stall(self) -> None:
        for wire in self._wires:
            wire.stalled = True

    def delay(self, seconds: float) -> None:
        self._delay = seconds

    def drop_after(self, size: int) -> None:
        self._left = size

    def lose_receipt(self) -> None:
        self._losing += 1

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses():
            writer.transport.abort()
            return
        try:
            host, port = await self._target()
            behind, to_server = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        wire = _Wire(writer, to_server)
        if self._refuses():  # since it began to connect
            wire.drop()
            return
        self._wires.add(wire)
        up = asyncio.create_task(self._carry(wire, reader, to_server, self._upwards))
        down = asyncio.create_task(self._carry(wire, behind, writer, self._downwards(bytearray())))
        wire.tasks = (up, down)
        for task in wire.tasks:
            task.add_done_callback(lambda _: self._ended(wire))

    def _refuses(self) -> bool:
        return self._refusing

    def _ended(self, wire: _Wire) -> None:
        self._wires.discard(wire)
        wire.drop()

    async def _carry(
        self,
        wire: _Wire,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        passing: Callable[[bytes], tuple[bytes, bool]],
    ) -> None:
        """Pass on until one side ends or `passing`, which may change what is carried, says that it is over."""
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                if wire.stalled:
                    continue
                carried, goes_on = passing(data)
                sink.write(carried)
                await sink.drain()
                if not goes_on:
                    return
        if wire.stalled:
            await asyncio.Event().wait()  # neither side is told that the other one has gone

    def _upwards(self, data: bytes) -> tuple[bytes, bool]:
        if self._left is None:
            return data, True
        carried, self._left = data[: self._left], self._left - len(data)
        if self._left > 0:
            return carried, True
        self._left = None
        return carried, False

    def _downwards(self, buffer: bytearray) -> Callable[[bytes], tuple[bytes, bool]]:
        def passing(data: bytes) -> tuple[bytes, bool]:
            buffer.extend(data)
            return b"".join(frame for frame in self._frames(buffer) if not self._swallowed(frame)), True

        return passing

    def _swallowed(self, frame: bytes) -> bool:
        if not self._losing or not self._is_receipt(frame):
            return False
        self._losing -= 1
        self.lost += 1
        return True


class _Wire:
    """One connection through the proxy."""

    def __init__(self, *ends: asyncio.StreamWriter) -> None:
        self.stalled = False
        self.tasks: tuple[asyncio.Task[None], ...] = ()
        self._ends = ends

    def drop(self) -> None:
        """Both ends see a reset."""
        for end in self._ends:
            end.transport.abort()
        for task in self.tasks:
            task.cancel()
