"""The connections below the streams. A server that speaks ASGI shows none of them, so they are looked for among the
files that this process has open, by their addresses: that works with every server and event loop.

Why: the kernel takes megabytes for a browser that has stopped to read, and all that time `send` returns at once. But
the kernel knows what the other side takes, and what it would take.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from .windows import Reading, window_of

Ends: TypeAlias = tuple[tuple[str, int], tuple[str, int]]
"""The two addresses of a connection, ours first."""

_PATIENCE: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)
"""The option for it, in milliseconds; Linux has it."""


class Wires:
    """Finds the connections of requests. Not those whose client is named by a proxy: they are the proxy's."""

    def __init__(self) -> None:
        self._seen: dict[Ends, int] = {}

    def of(self, scope: Mapping[str, Any]) -> Wire:
        """The connection of a request, if it can be found."""
        ends = _ends_of(scope)
        number = self._seen.get(ends) if ends else None
        if ends and (number is None or _ends_at(number) != ends):
            number = self._look_for(ends)
        return Wire(ends, number)

    def _look_for(self, ends: Ends) -> int | None:
        """The number of its file. What came last has a high one, mostly; what is seen on the way is asked for next."""
        self._seen.clear()
        for number in sorted(map(int, os.listdir("/dev/fd")), reverse=True):
            if (found := _ends_at(number)) is not None:
                self._seen[found] = number
                if found == ends:
                    return number
        return None


class Wire:
    """One connection. It stays the server's: what is not there, or not any more, is left alone."""

    def __init__(self, ends: Ends | None, number: int | None) -> None:
        self._ends = ends
        self._number = number
        self._reading = Reading()

    @contextmanager
    def impatient(self, seconds: float) -> Iterator[None]:
        """While entered, the kernel ends the connection when the other side has taken nothing for so long although
        there was something to take. To the server that is a client that has gone."""
        before = self._bear(round(seconds * 1000))
        try:
            yield
        finally:
            if before is not None:  # what else the connection is used for may take its time
                self._bear(before)

    def look(self) -> None:
        """Before an event is sent: see what the other side would take."""
        with self._open() as wire:
            self._reading.saw(window_of(wire))

    def heartbeat(self) -> int | None:
        """Before a heartbeat: how many bytes it should have, or None when nobody seems to read."""
        self.look()
        return self._reading.heartbeat()

    def cut(self) -> None:
        """End the connection now, whatever still waits to be taken."""
        with self._open() as wire, contextlib.suppress(OSError):
            if wire is not None:
                wire.shutdown(socket.SHUT_RDWR)

    def _bear(self, milliseconds: int) -> int | None:
        """Set how long; returns what was set before, None if there is no such connection or option."""
        with self._open() as wire, contextlib.suppress(OSError):
            if wire is not None and _PATIENCE is not None:
                before = wire.getsockopt(socket.IPPROTO_TCP, _PATIENCE)
                wire.setsockopt(socket.IPPROTO_TCP, _PATIENCE, milliseconds)
                return before
        return None

    @contextmanager
    def _open(self) -> Iterator[socket.socket | None]:
        if self._number is None or _ends_at(self._number) != self._ends:  # the number may mean something else by now
            yield None
            return
        wire = socket.socket(fileno=self._number)
        try:
            yield wire
        finally:
            wire.detach()


def _ends_of(scope: Mapping[str, Any]) -> Ends | None:
    server, client = scope.get("server") or ("", None), scope.get("client") or ("", None)
    if not server[1] or not client[1]:  # a socket of the file system; or the address is what a proxy has told
        return None
    return (server[0], int(server[1])), (client[0], int(client[1]))


def _ends_at(number: int) -> Ends | None:
    """The addresses of an open file, if it is a connection."""
    try:
        wire = socket.socket(fileno=number)
    except OSError:
        return None
    try:
        return wire.getsockname()[:2], wire.getpeername()[:2]
    except OSError:
        return None
    finally:
        wire.detach()
