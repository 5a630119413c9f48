"""Why there is no connection, for people: what happened, what it probably means, and what to do."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Final

from redis.exceptions import AuthenticationError, BusyLoadingError, InvalidResponse, ResponseError
from redis.exceptions import TimeoutError as NoAnswer

from .address import Address

_PASSWORD: Final = ("NOAUTH", "WRONGPASS", "invalid username-password pair", "without any password configured")


def why(error: BaseException, address: Address) -> str:
    """`error` is what redis-py raised while it connected; what lies behind that says most."""
    behind, server = list(_behind(error)), address.shown

    def found(*kinds: type[BaseException]) -> BaseException | None:
        return next((each for each in behind if isinstance(each, kinds)), None)

    if isinstance(error, BusyLoadingError):
        return f"{server} still reads its file: it answers when that is over"
    if isinstance(error, AuthenticationError) or any(word in str(error) for word in _PASSWORD):
        return f"{server} does not let us in ({error}): correct user and password in the URL"
    if "max number of clients" in str(error):
        return f"{server} has no room for another connection ({error}): raise its `maxclients`, or end what needs none"
    if isinstance(error, ResponseError):
        return f"{server} refuses the connection: {error}"
    if name := found(socket.gaierror):
        return f"{server}: the host {address.host!r} is not known ({_said(name)}): correct it in the URL"
    if tls := found(ssl.SSLError):
        return (
            f"{server}: no TLS connection comes about ({_said(tls)}): does the server speak TLS on this port, and does "
            "this machine trust its certificate? Without TLS the URL begins with redis://"
        )
    if found(ConnectionRefusedError):
        return f"nobody listens at {server}: is the server running there, and are host and port of the URL right?"
    if found(TimeoutError, NoAnswer):
        return f"{server} does not answer: is it stopped or busy, or does a firewall stand between?"
    if found(InvalidResponse):
        return f"what answers at {server} is no Redis ({error}): correct host and port of the URL"
    if (trouble := found(OSError)) and not isinstance(trouble, ConnectionError):
        return f"there is no way to {server} ({_said(trouble)}): is the host of the URL right, and the network there?"
    return f"{server} has closed the connection ({error}): is it stopping, full, or does it want TLS (rediss://)?"


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    return str(error.args[-1]) if error.args else type(error).__name__
