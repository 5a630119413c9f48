"""What leaves through nats-py: many frames in one write where it is known how, else message by message.

nats-py has no public way to hand over more than one message at a time, and spends most of a publish on building the
header block and on waking its flusher. The short way writes finished frames behind what nats-py itself has still to
write, so that nothing overtakes anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from nats.aio.client import Client, __version__
from nats.aio.transport import TcpTransport

log = logging.getLogger("tidings.engines.nats")

KNOWN: Final = "2.16."
"""Versions of nats-py whose inside is known here; any other one is used by its public methods only."""

Parcel: TypeAlias = tuple[str, str, str, bytes]
"""A message to be sent: subject, reply subject or "", header lines or "" (see `lines_of`), body."""


class Outlet(Protocol):
    """Where messages leave one connection."""

    @property
    def waiting(self) -> int:
        """Bytes that were handed over and are not with the system yet."""
        ...

    def send(self, parcels: Sequence[Parcel]) -> None:
        """Hand over, in order; returns before it is sent."""
        ...

    def send_soon(self, parcel: Parcel) -> None:
        """Hand over one, that may wait for others until the event loop turns."""
        ...

    def send_each(self, subjects: Sequence[str], body: bytes) -> None:
        """Hand over one short text to many subjects."""
        ...

    async def emptied(self) -> None:
        """Returns when all that was handed over is written, or with nats-py."""
        ...


def is_known() -> bool:
    """Whether the installed nats-py is one whose inside is known here."""
    return __version__.startswith(KNOWN)


def outlet_of(client: Client) -> Outlet:
    """The short way out of a connected client if this is the nats-py that is known, and its transport TCP or TLS."""
    transport = getattr(client, "_transport", None)
    known = is_known() and isinstance(getattr(client, "_pending", None), list)
    if known and isinstance(transport, TcpTransport) and transport._io_writer is not None:
        return _Joined(client, transport._io_writer)
    return _Public(client)


def lines_of(headers: Mapping[str, str] | None) -> str:
    """Headers as they are sent. Names and values have been checked by the caller."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]) if headers else ""


def frame(parcel: Parcel) -> bytes:
    """One message as the protocol has it."""
    subject, reply, lines, body = parcel
    if not lines:
        return b"%b%b\r\n" % (f"PUB {subject} {reply} {len(body)}\r\n".encode(), body)
    size = (len(lines) if lines.isascii() else len(lines.encode())) + 12
    head = f"HPUB {subject} {reply} {size} {size + len(body)}\r\nNATS/1.0\r\n{lines}\r\n"
    return b"%b%b\r\n" % (head.encode(), body)


class _Joined:
    """Frames that are written together, behind whatever nats-py has queued. A write is a call of the system, wakes the
    server, and costs more than a message does in all else."""

    def __init__(self, client: Client, writer: asyncio.StreamWriter) -> None:
        self._client = client
        self._writer = writer
        self._turning = False
        """Whether what is queued is written when the loop turns."""

    @property
    def waiting(self) -> int:
        return self._client._pending_data_size + self._writer.transport.get_write_buffer_size()

    def send(self, parcels: Sequence[Parcel]) -> None:
        self._write(map(frame, parcels))

    def send_soon(self, parcel: Parcel) -> None:
        # Where nats-py has its own: it writes what is there when it comes to it, in order.
        framed = frame(parcel)
        self._client._pending.append(framed)
        self._client._pending_data_size += len(framed)
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turned)

    def send_each(self, subjects: Sequence[str], body: bytes) -> None:
        if subjects:
            rest = f"  {len(body)}\r\n{body.decode()}\r\n"
            self._write((f"PUB {f'{rest}PUB '.join(subjects)}{rest}".encode(),))

    async def emptied(self) -> None:
        pass

    def _turned(self) -> None:
        self._turning = False
        if self._client._pending:
            self._write(())

    def _write(self, frames: Iterable[bytes]) -> None:
        client = self._client
        frames = [*client._pending, *frames]
        client._pending = []
        client._pending_data_size = 0
        self._writer.write(frames[0] if len(frames) == 1 else b"".join(frames))


class _Public:
    """One `Client.publish` after the other, in a task that lives as long as there is something to send."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: deque[Parcel] = deque()
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        return self._client.pending_data_size + self._size

    def send(self, parcels: Sequence[Parcel]) -> None:
        self._queue.extend(parcels)
        self._size += sum(len(parcel[3]) for parcel in parcels)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="tidings nats outlet")

    def send_soon(self, parcel: Parcel) -> None:
        self.send((parcel,))

    def send_each(self, subjects: Sequence[str], body: bytes) -> None:
        self.send([(subject, "", "", body) for subject in subjects])

    async def emptied(self) -> None:
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _drain(self) -> None:
        while self._queue:
            subject, reply, lines, body = self._queue.popleft()
            self._size -= len(body)
            headers: dict[str, Any] = dict(line.split(": ", 1) for line in lines.split("\r\n") if line)
            try:
                await self._client.publish(subject, body, reply, headers or None)
            except Exception as error:  # the connection is gone: whoever waits for an answer is told by its loss
                log.debug("%s could not be sent: %s", subject, error)
                self._queue.clear()
                self._size = 0
