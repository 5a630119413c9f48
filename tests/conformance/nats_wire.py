"""As much of the NATS protocol as a proxy needs: where a frame ends, and which of them confirm a publish."""

from __future__ import annotations

_WITH_PAYLOAD = (b"MSG ", b"HMSG ")


def frames(buffer: bytearray) -> list[bytes]:
    """The complete frames from a server, taken off the front of the buffer."""
    found: list[bytes] = []
    while (line := buffer.find(b"\r\n")) >= 0:
        size = line + 2
        if buffer.startswith(_WITH_PAYLOAD):
            size += int(buffer[:line].rpartition(b" ")[2]) + 2
        if len(buffer) < size:
            break
        found.append(bytes(buffer[:size]))
        del buffer[:size]
    return found


def is_receipt(frame: bytes) -> bool:
    """Whether the frame is JetStream's answer to a publish that was stored."""
    return frame.startswith(b"MSG ") and b'\r\n{"stream":"' in frame and b'"seq":' in frame
