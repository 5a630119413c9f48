"""Header blocks that are read only as far as somebody asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from tidings.engines.nats.connection import Frame
from tidings.engines.nats.headers import ORIGIN, Block
from tidings.engines.nats.wire import clean

NAMES = st.sampled_from(["ce-id", "ce-type", "Nats-Msg-Id", "NATS-ttl", "Status", ORIGIN, "X", "ce-i", "-id", "häuser"])
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=8)


def block(lines: list[tuple[str, str]], first: str = "NATS/1.0") -> Block:
    return Block("\r\n".join([first, *(f"{name}: {value}" for name, value in lines), "", ""]).encode())


@given(LINES, NAMES)
def test_one_header_is_looked_up_as_all_are_read(lines: list[tuple[str, str]], name: str) -> None:
    """Asking for one header gives what reading the whole block gives, before and after, also without the server's."""
    for headers in (block(lines), block(lines).senders()):
        first = headers.get(name)
        assert first == dict(headers).get(name)
        assert headers.get(name) == first
        assert (name in headers) == (first is not None)


@given(st.lists(st.tuples(st.sampled_from(["ce-id", "Nats-Msg-Id", "X"]), VALUES), max_size=8))
def test_blocks_are_read_as_nats_py_reads_them(lines: list[tuple[str, str]]) -> None:
    """What both understand, both understand alike."""
    headers = block(lines)
    first, _, rest = headers.raw.partition(b"\r\n")
    assert first == b"NATS/1.0"
    assert dict(headers) == Client._parse_header_lines(rest)


@given(LINES)
def test_the_senders_own_headers_are_the_same_either_way(lines: list[tuple[str, str]]) -> None:
    """A lazy block is cleaned as a dict of headers is, and equals it."""
    lazy, parsed = clean(block(lines)), clean(dict(lines))
    assert lazy == {name: value.strip(" \t\n\v\f") for name, value in parsed.items()}
    assert len(lazy) == len(parsed)


@pytest.mark.parametrize(
    ("first", "status", "description"),
    [
        ("NATS/1.0 404 No Messages", "404", "No Messages"),
        ("NATS/1.0 503", "503", ""),
        ("NATS/1.0 100 Idle Heartbeat", "100", "Idle Heartbeat"),
        ("NATS/1.0", "", ""),
        ("NATS/1.0 what", "", ""),
    ],
)
def test_what_the_server_says(first: str, status: str, description: str) -> None:
    """A status line is read with its description, also when headers follow."""
    for lines in ([], [("Nats-Pending-Messages", "3")]):
        frame = Frame("", "", block(lines, first), b"")
        assert (frame.status, frame.header("Description")) == (status, description)
        assert frame.header("Nats-Pending-Messages") == ("3" if lines else "")
        assert clean(frame.headers) == {}


def test_odd_blocks_do_no_harm() -> None:
    """Lines without a colon, without a name or with bytes that are no text are left out or replaced."""
    headers = Block(b"NATS/1.0\r\nno colon\r\n: no name\r\nbytes: \xff\r\nspaced name : x\r\n\r\n")
    assert dict(headers) == {"bytes": "\N{REPLACEMENT CHARACTER}", "spaced name ": "x"}
    assert headers["bytes"] == "\N{REPLACEMENT CHARACTER}"
    assert repr(headers) == repr(dict(headers))
    with pytest.raises(KeyError):
        headers["no colon"]
