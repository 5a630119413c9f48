"""The short way in: frames split by ourselves, and a ping that answers for what was sent before it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import ProtocolError

from nats_server import NatsServer
from tidings.engines.nats import outbound
from tidings.engines.nats.client import Inbound, LeanClient
from tidings.engines.nats.connection import Address, Frame, NatsPy, connect_nats_py

pytest_plugins = ("on_nats",)

Parts = tuple[int, str, str, bytes, bytes]

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n \t\x0b\x0c"), min_size=1, max_size=9)
BODY = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"MSG a 1 3\r\nabc\r\n", b"PING\r\n"])
HEADERS = st.just(b"") | st.builds(lambda text: b"NATS/1.0\r\nn: %b\r\n\r\n" % text.encode(), TEXT)
FRAMES = st.lists(st.tuples(st.integers(1, 99), TEXT, st.just("") | TEXT, HEADERS, BODY), max_size=6)


def written(parts: Parts) -> bytes:
    number, subject, reply, headers, body = parts
    words = [subject, str(number), *([reply] if reply else []), *([str(len(headers))] if headers else [])]
    words.append(str(len(headers) + len(body)))
    return b"%bMSG %b\r\n%b%b\r\n" % (b"H" if headers else b"", " ".join(words).encode(), headers, body)


class Heard(Client):
    """Counts what is left to nats-py."""

    pings = 0

    async def _process_ping(self) -> None:
        self.pings += 1


@given(FRAMES, st.lists(st.integers(1, 30)), st.booleans())
def test_frames_are_whole_however_they_are_cut(frames: list[Parts], cuts: list[int], with_pings: bool) -> None:
    """Messages come out as they went in, in order, wherever the pieces end; what is no message goes to nats-py."""
    got: list[Parts] = []
    client = Heard()
    parser = Inbound(client, lambda *parts: got.append(parts))
    between = b"PING\r\n" if with_pings else b""
    data = b"".join(between + written(frame) for frame in frames)

    async def feed() -> None:
        rest = data
        for cut in [*cuts, len(data)]:
            await parser.parse(rest[:cut])
            rest = rest[cut:]

    asyncio.run(feed())
    assert got == frames
    assert client.pings == (len(frames) if with_pings else 0)


@pytest.mark.parametrize("line", [b"MSG a x 3\r\nabc\r\n", b"HMSG a 1\r\n", b"MSG\r\n", b"WHAT\r\n"])
async def test_what_is_no_protocol_ends_the_connection(line: bytes) -> None:
    """A line that cannot be understood raises the error by which nats-py gives a connection up."""
    with pytest.raises(ProtocolError):
        await Inbound(Client(), lambda *_: None).parse(line)


async def connected(server: NatsServer) -> NatsPy:
    return await connect_nats_py(server.url, Address((server.url,)), "test", lambda _: None, lambda _: None)


@pytest.mark.parametrize("known", [outbound.KNOWN, "0.0."])
async def test_a_ping_answers_for_what_was_sent_before(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    """By either way in and out: what was published before a ping has come back to its own subscriber after it."""
    monkeypatch.setattr(outbound, "KNOWN", known)
    connection = await connected(server)
    assert isinstance(connection._client, LeanClient) == (known != "0.0.")
    got: list[Frame] = []
    await connection.subscribe("to.*", "", got.append)
    connection.send([(f"to.{n}", "back", f"n: {n}\r\n", b"x" * n) for n in range(300)])
    connection.send_each([f"to.{n}" for n in range(300)], b"+ACK")
    await connection.ping()
    await connection.close()
    assert [(f.subject, f.reply, f.header("n"), len(f.body)) for f in got[:300]] == [
        (f"to.{n}", "back", str(n), n) for n in range(300)
    ]
    assert [(f.subject, f.headers, f.body) for f in got[300:]] == [(f"to.{n}", None, b"+ACK") for n in range(300)]


async def test_a_ping_does_not_outlive_its_connection(server: NatsServer) -> None:
    """Closing ends a ping that waits, and one that was cancelled does the next no harm."""
    connection = await connected(server)
    given_up = asyncio.ensure_future(connection.ping())
    await asyncio.sleep(0)
    given_up.cancel()
    await connection.ping()
    server.freeze()
    waiting = asyncio.ensure_future(connection.ping())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(connection.close())
    with pytest.raises(ConnectionError):
        await waiting
    server.kill()
    await closing
