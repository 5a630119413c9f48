"""The proxy of the conformance cases really does what the cases believe it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from conformance.nats_wire import frames, is_receipt
from tidings.conformance.proxy import Proxy

RECEIPT = b'MSG _INBOX.1 1 28\r\n{"stream":"events", "seq":7}\r\n'
MESSAGE = b"MSG events.a 2 _INBOX.9 11\r\nMSG a 1 9\r\n\r\n"
ENDED = (ConnectionError, asyncio.IncompleteReadError)


class Server:
    """Keeps what it gets and sends what it is told."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.writers: list[asyncio.StreamWriter] = []
        self.clients: list[asyncio.StreamWriter] = []
        self.changed = asyncio.Condition()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(1000):
                async with self.changed:
                    self.got.extend(data)
                    self.changed.notify_all()
        except OSError:
            pass
        finally:
            writer.close()

    async def connect(self, proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        self.clients.append(writer)
        return reader, writer

    async def has(self, size: int) -> bytes:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: len(self.got) >= size)
        return bytes(self.got)


@asynccontextmanager
async def standing() -> AsyncIterator[tuple[Server, Proxy]]:
    server = Server()
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    address = listening.sockets[0].getsockname()

    async def target() -> tuple[str, int]:
        return address[0], address[1]

    proxy = Proxy(target, frames, is_receipt)
    await proxy.start()
    try:
        yield server, proxy
    finally:
        await proxy.close()
        listening.close()
        for writer in (*server.writers, *server.clients):
            writer.transport.abort()
        await asyncio.sleep(0)  # the transports close in the next turn of the loop


async def test_frames_end_where_their_length_says() -> None:
    """A payload that looks like a frame is none, and what is not complete waits for its rest."""
    buffer = bytearray(b"PING\r\n" + MESSAGE + RECEIPT[:-5])
    assert frames(buffer) == [b"PING\r\n", MESSAGE]
    buffer.extend(RECEIPT[-5:])
    assert frames(buffer) == [RECEIPT]
    assert (bytes(buffer), is_receipt(RECEIPT), is_receipt(MESSAGE)) == (b"", True, False)


async def test_one_receipt_vanishes() -> None:
    """Of what comes from the server exactly one answer to a publish is swallowed, and it is counted."""
    async with standing() as (server, proxy):
        reader, writer = await server.connect(proxy)
        writer.write(b"hello")
        await server.has(5)
        proxy.lose_receipt()
        server.writers[0].write(MESSAGE + RECEIPT + MESSAGE + RECEIPT)
        expected = MESSAGE + MESSAGE + RECEIPT
        assert await asyncio.wait_for(reader.readexactly(len(expected)), 10) == expected
        assert proxy.lost == 1


async def test_drop_after_breaks_in_the_middle() -> None:
    """Exactly the given number of bytes reach the server, then both ends are cut; the next connection is whole."""
    async with standing() as (server, proxy):
        reader, writer = await server.connect(proxy)
        proxy.drop_after(7)
        writer.write(b"0123456789")
        with pytest.raises(ENDED):
            await asyncio.wait_for(reader.readexactly(1), 10)
        assert await server.has(7) == b"0123456"
        _, again = await server.connect(proxy)
        again.write(b"abcdefghij")
        assert await server.has(17) == b"0123456abcdefghij"


async def test_cut_lets_nobody_through() -> None:
    """While cut, connections end at once; after `mend` they carry."""
    async with standing() as (server, proxy):
        reader, _ = await server.connect(proxy)
        proxy.cut()
        with pytest.raises(ENDED):
            await asyncio.wait_for(reader.readexactly(1), 10)
        refused, _ = await server.connect(proxy)
        with pytest.raises(ENDED):
            await asyncio.wait_for(refused.readexactly(1), 10)
        proxy.mend()
        _, writer = await server.connect(proxy)
        writer.write(b"x")
        assert await server.has(1) == b"x"


async def test_stalled_says_nothing() -> None:
    """A stalled connection carries nothing and does not end; a new one carries."""
    async with standing() as (server, proxy):
        reader, writer = await server.connect(proxy)
        writer.write(b"a")
        await server.has(1)
        proxy.stall()
        writer.write(b"b")
        _, other = await server.connect(proxy)
        other.write(b"c")
        assert await server.has(2) == b"ac"
        assert not reader.at_eof()
