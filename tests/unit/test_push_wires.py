"""The connections below the streams: found by their addresses, and left as they were."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tidings.push.wires import Wires


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
    with Wires().impatient(scope_of(server), 1.5):
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
        number, stream = server.fileno(), wires.impatient(scope_of(server), 1.5)
        stream.__enter__()
        server.close()
        client.close()
        other_client = socket.create_connection(listening.getsockname())
        other = listening.accept()[0]
        numbers = {other.fileno(), other_client.fileno()}
        stream.__exit__(None, None, None)
        assert number in numbers
        assert patience(other) == patience(other_client) == 0
        with wires.impatient(scope_of(other), 2.5):
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
    wires = Wires()
    with wires.impatient(scope, 1.5):
        wires.cut(scope)


def test_cut_off_it_is_over_for_both(pair: tuple[socket.socket, socket.socket]) -> None:
    """Both ends read the end; ports may be text, as one server has them."""
    server, client = pair
    (host, port), (their_host, their_port) = server.getsockname(), server.getpeername()
    Wires().cut({"server": (host, str(port)), "client": (their_host, str(their_port))})
    client.settimeout(10)
    assert server.recv(1) == client.recv(1) == b""
