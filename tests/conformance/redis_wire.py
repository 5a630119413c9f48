"""As much of the Redis protocol as a proxy needs: where an answer ends, and which of them confirm that something was
stored."""

from __future__ import annotations

_STORING = (b"store:", b"settle:", b"redrive:")


def frames(buffer: bytearray) -> list[bytes]:
    """The complete answers from a server, taken off the front of the buffer."""
    found: list[bytes] = []
    while (end := _end(buffer, 0)) >= 0:
        found.append(bytes(buffer[:end]))
        del buffer[:end]
    return found


def is_receipt(frame: bytes) -> bool:
    """Whether the frame answers a call that stores something."""
    return frame.startswith(b"*2\r\n$") and frame.split(b"\r\n", 3)[2].startswith(_STORING)


def _end(buffer: bytearray, start: int) -> int:
    """Where the value that begins at `start` ends; -1 when it is not complete."""
    line = buffer.find(b"\r\n", start)
    if line < 0:
        return -1
    kind, number, end = buffer[start : start + 1], bytes(buffer[start + 1 : line]), line + 2
    if kind == b"$" and int(number) >= 0:
        end += int(number) + 2
        return end if end <= len(buffer) else -1
    if kind == b"*":
        for _ in range(max(int(number), 0)):
            end = _end(buffer, end)
            if end < 0:
                return -1
    return end
