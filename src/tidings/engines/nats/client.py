"""nats-py's client with a shorter way in for messages.

nats-py parses every header of every message. Here its parser is exchanged for one that hands the parts on as they are;
all else that a server says goes to nats-py's own, as ever. That reaches into nats-py, so it is done for the versions
that are known; with others `NatsPy` goes the public way, which is slower.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias

from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol.parser import PING, Parser

OnParts: TypeAlias = Callable[[int, str, str, bytes, bytes], None]
"""Takes number of the subscription, subject, reply, header block (may be empty) and body. Must not raise."""

_MSG: Final = b"M"[0]
_HMSG: Final = b"H"[0]


class LeanClient(Client):
    """A client whose messages all go to `on_parts`, whatever subscription they are for; see `outbound.is_known`."""

    def __init__(self, on_parts: OnParts) -> None:
        super().__init__()
        self._ps = Inbound(self, on_parts)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes a ping ahead of what still waits to be written: its answer would say nothing of that.
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        await self._send_command(PING)
        await self._flush_pending()


class Inbound(Parser):
    """Splits what was read into frames. One that comes in many pieces is put together once, when all are there."""

    def __init__(self, client: Client, on_parts: OnParts) -> None:
        self._on_parts = on_parts
        self._resets = 0
        super().__init__(client)

    def reset(self) -> None:
        super().reset()
        self._pieces: list[bytes] = []
        self._missing = 0
        self._resets += 1

    async def parse(self, data: bytes = b"") -> None:
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._pieces)
            self._pieces = []
        at, size, resets, on_parts = 0, len(data), self._resets, self._on_parts
        while at < size and resets == self._resets:
            end = data.find(b"\r\n", at)
            if end < 0:
                self._keep(data[at:], 1)
                return
            kind, start = data[at], end + 2
            if kind != _MSG and kind != _HMSG:
                await super().parse(data[at:start])
                at = start
                continue
            # `MSG subject sid [reply] size`, `HMSG subject sid [reply] header-size size`
            words = data[at:end].decode("utf-8", "surrogateescape").split(" ")
            try:
                stop = start + int(words[-1])
                body = start + int(words[-2]) if kind == _HMSG else start
                reply = words[3] if len(words) == (6 if kind == _HMSG else 5) else ""
                number = int(words[2])
            except (ValueError, IndexError):
                raise ProtocolError(f"nats: malformed {words[0]}") from None
            if stop + 2 > size:
                self._keep(data[at:], stop + 2 - size)
                return
            on_parts(number, words[1], reply, data[start:body], data[body:stop])
            at = stop + 2

    def _keep(self, piece: bytes, missing: int) -> None:
        """The beginning of a frame; at least so many bytes of it are still to come."""
        self._pieces.append(piece)
        self._missing = missing
