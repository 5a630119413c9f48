"""The two ways out through nats-py: many frames in one write, and its public methods."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client
from nats.aio.client import __version__ as version

from nats_server import NatsServer
from tidings.engines.nats import outbound
from tidings.engines.nats.outbound import Parcel, frame, lines_of, outlet_of

pytest_plugins = ("on_nats",)

PATIENCE = 60.0
MESSAGES: list[tuple[str, str, dict[str, str] | None, bytes]] = [
    ("there.1", "", None, b""),
    ("there.2", "back", None, b"\x00\r\n body"),
    ("there.3", "", {"ce-id": "1", "Empty": ""}, b"x"),
    ("there.4", "back", {"ce-source": "a b"}, b""),
    ("there.5", "back", {"Foreign": "ä€"}, b"y" * 70_000),
]
PARCELS: list[Parcel] = [(subject, reply, lines_of(headers), body) for subject, reply, headers, body in MESSAGES]


async def sent(
    server: NatsServer, parcels: list[Parcel], times: int = 1
) -> list[tuple[str, str, dict[str, str] | None, bytes]]:
    """What a subscriber gets of what leaves another connection."""
    receiver, sender = Client(), Client()
    await receiver.connect(server.url)
    await sender.connect(server.url)
    try:
        heard = await receiver.subscribe("there.*", pending_msgs_limit=-1, pending_bytes_limit=-1)
        await receiver.flush()
        outlet = outlet_of(sender)
        for _ in range(times):
            outlet.send(parcels)
        got = [await heard.next_msg(timeout=PATIENCE) for _ in range(len(parcels) * times)]
        assert outlet.waiting == 0
        return [(message.subject, message.reply, message.headers, message.data) for message in got]
    finally:
        await receiver.close()
        await sender.close()


@pytest.mark.parametrize("known", [outbound.KNOWN, "0.0."])
async def test_what_is_sent_arrives(server: NatsServer, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    """By either way subject, reply, headers and body arrive as they are, and in order."""
    monkeypatch.setattr(outbound, "KNOWN", known)
    assert await sent(server, PARCELS, times=30) == MESSAGES * 30


async def test_nothing_overtakes_what_nats_py_has_queued(server: NatsServer) -> None:
    """A subscription that nats-py has not written yet still stands before the message that is sent behind it."""
    client = Client()
    await client.connect(server.url)
    try:
        heard = await client.subscribe("there.*")
        outlet_of(client).send([PARCELS[0]])
        assert (await heard.next_msg(timeout=PATIENCE)).subject == "there.1"
    finally:
        await client.close()


async def test_what_is_sent_in_one_turn_is_one_write(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that are sent one by one leave together when the loop turns, and arrive in their order."""
    client = Client()
    await client.connect(server.url)
    writes: list[bytes] = []
    try:
        heard = await client.subscribe("there.*")
        await client.flush()
        outlet = outlet_of(client)
        assert isinstance(outlet, outbound._Joined)
        write = outlet._writer.write

        def written(data: bytes) -> None:
            writes.append(data)
            write(data)

        monkeypatch.setattr(outlet._writer, "write", written)
        for number in range(20):
            outlet.send_soon((f"there.{number}", "", "", b"x"))
        assert writes == []
        assert outlet.waiting >= 20 * len(frame(("there.1", "", "", b"x")))
        got = [(await heard.next_msg(timeout=PATIENCE)).subject for _ in range(20)]
        assert got == [f"there.{number}" for number in range(20)]
        assert len(writes) == 1
    finally:
        await client.close()


async def test_the_short_way_is_taken(server: NatsServer) -> None:
    """The nats-py that is installed is one whose inside is known, and its publish is not asked for anything."""
    client = Client()
    await client.connect(server.url)
    outlet = outlet_of(client)
    await client.close()
    assert version.startswith(outbound.KNOWN)
    outlet.send([])  # a closed connection swallows it, as nats-py does
    assert not isinstance(outlet, outbound._Public)


async def test_a_lost_connection_ends_the_long_way(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the public way cannot send any more it drops, so that nothing arrives later by surprise."""
    monkeypatch.setattr(outbound, "KNOWN", "0.0.")
    client = Client()
    await client.connect(server.url)
    outlet = outlet_of(client)
    await client.close()
    outlet.send(PARCELS)
    async with asyncio.timeout(PATIENCE):
        while outlet.waiting:
            await asyncio.sleep(0)


def test_a_frame_without_headers_is_a_pub() -> None:
    """Sizes count bytes, not characters."""
    assert frame(("a.b", "r", "", b"12345")) == b"PUB a.b r 5\r\n12345\r\n"
    assert frame(("a", "", "N: ä\r\n", b"1")) == "HPUB a  19 20\r\nNATS/1.0\r\nN: ä\r\n\r\n".encode() + b"1\r\n"
