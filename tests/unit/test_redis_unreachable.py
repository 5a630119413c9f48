"""What is said where no Redis can be reached: the cause, and what to look at."""

from __future__ import annotations

import asyncio

import pytest

from tidings.engines.redis import Address, RedisEngine, probe
from tidings.errors import EngineUnavailable


async def test_nobody_there_is_said_in_time() -> None:
    """Without a server `open` fails when its time is over and names the address; the probe does so at once."""
    engine = RedisEngine(Address("127.0.0.1", 1), timeout=0.3)
    with pytest.raises(EngineUnavailable, match=r"redis://127\.0\.0\.1:1"):
        await engine.open()
    with pytest.raises(EngineUnavailable, match=r"redis://127\.0\.0\.1:1"):
        await probe(Address("127.0.0.1", 1))


@pytest.mark.parametrize(
    ("address", "cause", "advice"),
    [
        (Address("127.0.0.1", 1), "nobody listens at redis://127.0.0.1:1", "is the server running there"),
        (Address("no.such.host.invalid"), "'no.such.host.invalid' is not known", "correct it in the URL"),
    ],
)
async def test_an_address_that_leads_nowhere_is_said(address: Address, cause: str, advice: str) -> None:
    """Where no server can be reached the error names the address, the cause, and what to look at."""
    with pytest.raises(EngineUnavailable) as caught:
        await probe(address)
    assert cause in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("says", "tls", "cause", "advice"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "is no Redis", "correct host and port"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, "no TLS connection", "Without TLS the URL begins with redis://"),
        (b"", False, "has closed the connection", "does it want TLS (rediss://)?"),
        (b"-ERR max number of clients reached\r\n", False, "no room for another connection", "raise its `maxclients`"),
    ],
)
async def test_what_answers_and_is_no_redis_is_said(says: bytes, tls: bool, cause: str, advice: str) -> None:
    """Where something else answers, or the other protocol is spoken, the error says which it probably is."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with other:
        with pytest.raises(EngineUnavailable) as caught:
            await probe(Address("127.0.0.1", other.sockets[0].getsockname()[1], tls=tls))
    assert cause in str(caught.value)
    assert advice in str(caught.value)
