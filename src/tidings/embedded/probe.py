"""A handshake with a server, to know that it is ours and ready: an open port alone says nothing."""

from __future__ import annotations

import json
import secrets
import socket
from dataclasses import dataclass
from typing import Any

from .config import Address


class ProbeError(Exception):
    """Nobody there, somebody else, or not ready. The text says which."""


@dataclass(frozen=True)
class Greeting:
    """What the server said of itself."""

    server: str
    version: str


def probe(address: Address, *, jetstream: bool = False, timeout: float = 2.0) -> Greeting:
    """Connect, authenticate and wait for the server's PONG; with `jetstream` also ask it for the account's streams.

    Blocks for up to about `timeout` seconds. Raises `ProbeError`.
    """
    try:
        with socket.create_connection((address.host, address.port), timeout=timeout) as connection:
            return _talk(connection, address, jetstream)
    except (OSError, ValueError, KeyError) as error:
        raise ProbeError(f"{address}: {error or type(error).__name__}") from error


def _talk(connection: socket.socket, address: Address, jetstream: bool) -> Greeting:
    with connection.makefile("rb") as lines:
        first = lines.readline()
        if not first.startswith(b"INFO "):
            raise ProbeError(f"{address.host}:{address.port} is not a nats-server")
        info: dict[str, Any] = json.loads(first[5:])
        hello = {
            "user": address.user,
            "pass": address.password,
            "verbose": False,
            "pedantic": False,
            "name": "tidings probe",
            "lang": "python",
            "version": "1",
            "protocol": 1,
        }
        inbox = f"_INBOX.{secrets.token_hex(11)}"
        request = f"SUB {inbox} 1\r\nPUB $JS.API.INFO {inbox} 0\r\n\r\n".encode() if jetstream else b""
        connection.sendall(b"CONNECT " + json.dumps(hello).encode() + b"\r\n" + request + b"PING\r\n")
        ponged = False
        while not ponged or jetstream:
            line = lines.readline()
            if line.startswith(b"PONG"):
                ponged = True
            elif line.startswith(b"MSG "):
                answer = json.loads(lines.read(int(line.split()[-1]) + 2))
                if "error" in answer:
                    raise ProbeError(f"{address}: JetStream says {answer['error'].get('description')}")
                jetstream = False
            elif not line or line.startswith(b"-ERR"):
                raise ProbeError(f"{address}: {line.decode(errors='replace').strip() or 'connection closed'}")
    return Greeting(info["server_name"], info["version"])
