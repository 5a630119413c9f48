"""The connections below the streams: found by their addresses, left as they were, and watched."""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tidings.push.windows import Reading, Window, window_of
from tidings.push.wires import Wire, Wires


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection, the server's first."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
        listening.accept()[0] as server,
    ):
        yield server, client


def scope_of(server: socket.socket) -> dict[str, Any]:
    return {"server": server.getsockname(), "client": server.getpeername()}


def patience(wire: socket.socket) -> int:
    return wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


needs_the_option = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel has no such option")


@needs_the_option
def test_a_connection_is_impatient_as_long_as_its_stream_lasts(pair: tuple[socket.socket, socket.socket]) -> None:
    """The option is set on the server's end and on no other, and is afterwards what it was."""
    server, client = pair
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000)
    with Wires().of(scope_of(server)).impatient(1.5):
        assert (patience(server), patience(client)) == (1500, 0)
    assert patience(server) == 90_000
    client.sendall(b"still open")
    assert server.recv(100) == b"still open"


@needs_the_option
def test_a_number_that_means_another_connection_is_not_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    """A connection that has gone while its stream lasted, and whose number is another one's by now: that is left alone,
    and found when it is asked for itself."""
    wires = Wires()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server = listening.accept()[0]
        number, stream = server.fileno(), wires.of(scope_of(server)).impatient(1.5)
        stream.__enter__()
        server.close()
        client.close()
        other_client = socket.create_connection(listening.getsockname())
        other = listening.accept()[0]
        numbers = {other.fileno(), other_client.fileno()}
        stream.__exit__(None, None, None)
        assert number in numbers
        assert patience(other) == patience(other_client) == 0
        with wires.of(scope_of(other)).impatient(2.5):
            assert (patience(other), patience(other_client)) == (2500, 0)
        other.close()
        other_client.close()


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"server": None, "client": None},
        {"server": ("/run/web.sock", None), "client": None},
        {"server": ("127.0.0.1", 80), "client": ("203.0.113.7", 0)},
        {"server": ("127.0.0.1", 80), "client": ("203.0.113.7", 4711)},
        {"server": ("testserver", 80), "client": ("testclient", 50000)},
    ],
)
def test_what_is_no_connection_of_this_process_is_left_alone(scope: dict[str, Any]) -> None:
    """Behind a proxy, on a socket of the file system and in tests there is nothing to find, and nothing fails."""
    wire = Wires().of(scope)
    with wire.impatient(1.5):
        wire.look()
        assert [wire.heartbeat() for _ in range(5)] == [64] * 5
        wire.cut()


def test_cut_off_it_is_over_for_both(pair: tuple[socket.socket, socket.socket]) -> None:
    """Both ends read the end; ports may be text, as one server has them."""
    server, client = pair
    (host, port), (their_host, their_port) = server.getsockname(), server.getpeername()
    Wires().of({"server": (host, str(port)), "client": (their_host, str(their_port))}).cut()
    client.settimeout(10)
    assert server.recv(1) == client.recv(1) == b""


linux = pytest.mark.skipif(sys.platform != "linux", reason="only this kernel tells the window")


def taken(server: socket.socket) -> None:
    """Wait until the other side's system has taken all that was sent."""
    until = time.monotonic() + 20
    while struct.unpack_from("I", server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)[0]:
        assert time.monotonic() < until
        time.sleep(0.001)


def beats(pair: tuple[socket.socket, socket.socket], sizes: list[int], *, reads: bool) -> int:
    """How many heartbeats there were until the watched side seemed to read nothing, of ten at most; before each
    something of these sizes is sent."""
    server, client = pair
    wire = Wires().of(scope_of(server))
    for beat in range(10):
        for size in sizes:
            wire.look()
            talk(server, client, size, reads)
        length = wire.heartbeat()
        if length is None:
            return beat
        talk(server, client, length, reads)
    return 10


def talk(server: socket.socket, client: socket.socket, size: int, reads: bool) -> None:
    server.sendall(size * b".")
    taken(server)
    while reads and size:
        size -= len(client.recv(size))


@linux
@pytest.mark.parametrize("sizes", [[], [400], [400] * 10], ids=["nothing", "little", "more"])
def test_one_that_reads_nothing_is_known_by_its_heartbeats(
    pair: tuple[socket.socket, socket.socket], sizes: list[int]
) -> None:
    """Its system takes all that comes, and yet some heartbeats tell, whatever is sent between them."""
    assert beats(pair, sizes, reads=False) < 10


@linux
@pytest.mark.parametrize("seed", range(3))
def test_one_that_reads_is_not_taken_for_frozen(pair: tuple[socket.socket, socket.socket], seed: int) -> None:
    """Whatever it is sent, small and large, often and seldom."""
    drawn = random.Random(seed)
    assert beats(pair, drawn.choices([1, 400, 5_000, 60_000], k=seed * 3), reads=True) == 10


@linux
def test_one_that_begins_to_read_again_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    """After a pause that was not long enough to tell it counts as new."""
    server, client = pair
    wire = Wires().of(scope_of(server))
    client.settimeout(10)
    for reads in (False, True) * 6:
        length = wire.heartbeat()
        assert length is not None
        talk(server, client, length, False)
        if reads:
            client.recv(1 << 20)
    assert window_of(server) is not None


def test_where_the_window_is_not_told_nobody_is_dropped() -> None:
    """A kernel that does not say, and one that says nothing is left, which it then waits for itself."""
    for window in (None, Window(0, 128)):
        reading = Reading()
        for _ in range(10):
            reading.saw(window)
            assert reading.heartbeat() is not None
    assert window_of(None) is None
    assert Wire(None, None).heartbeat() == 64


@pytest.mark.parametrize(("unit", "length"), [(1, 64), (128, 512), (1024, 4096), (16384, 4096)])
def test_a_heartbeat_is_longer_than_what_the_window_is_rounded_by(unit: int, length: int) -> None:
    """But not longer than a page."""
    reading = Reading()
    reading.saw(Window(65536, unit))
    assert reading.heartbeat() == length
