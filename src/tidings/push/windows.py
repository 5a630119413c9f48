"""Whether the other side of a connection seems to read, by the window that it offers: what its system would still take.

A program that reads makes room again, so its window comes back to what it was. For one that has stopped, its system
goes on taking what comes, for megabytes when that comes in small pieces: it rounds the window up with each piece. A
heartbeat that is larger than that rounding leaves its mark, though: each one makes the window smaller for good.

Systems make windows smaller for reasons of their own, too. So this is a doubt, and no proof.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final, NamedTuple

_UNITS: Final = 4  # of rounding that a heartbeat is long
_SHORTEST: Final = 64  # bytes of a heartbeat
_LONGEST: Final = 4096
_MARK: Final = 0.7  # of a heartbeat, by which the window is smaller when none of it was read
_DOUBT: Final = 2  # marks in a row

# Linux, include/uapi/linux/tcp.h, struct tcp_info
_SCALE: Final = 6
_UNTAKEN: Final = 24
_OFFERED: Final = 228
_KNOWN: Final = 232


class Window(NamedTuple):
    """What the other side has offered to take, last time that it said."""

    offered: int
    unit: int
    """What it rounds to; all in bytes."""


def window_of(wire: socket.socket | None) -> Window | None:
    """None where it is not told, or in large steps only, and while something is under way that changes it."""
    if wire is None or sys.platform != "linux":
        return None
    try:
        info = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _KNOWN)
    except OSError:
        return None
    if len(info) < _KNOWN:
        return None
    [untaken], [offered] = struct.unpack_from("=I", info, _UNTAKEN), struct.unpack_from("=I", info, _OFFERED)
    scale = info[_SCALE] & 0xF
    return Window(offered, 1 << scale) if scale and not untaken else None


class Reading:
    """Watches one connection, from heartbeat to heartbeat. Between two of them the largest window counts."""

    def __init__(self) -> None:
        self._largest = 0
        self._before = 0
        self._beat = 0
        self._marks = 0

    def saw(self, window: Window | None) -> None:
        """What is offered before something is sent."""
        if window is not None:
            self._largest = max(self._largest, window.offered)
            self._beat = min(max(_SHORTEST, _UNITS * window.unit), _LONGEST)

    def heartbeat(self) -> int | None:
        """How many bytes the heartbeat has that is sent now; None when it seems that nobody reads them."""
        # At nothing left it is the kernel that waits for the other side, and has been told for how long.
        marked = 0 < self._largest <= self._before - _MARK * self._beat
        self._marks = self._marks + 1 if marked else 0
        self._before, self._largest = self._largest, 0
        return None if self._marks >= _DOUBT else self._beat or _SHORTEST
