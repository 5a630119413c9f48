"""Small shared state with compare-and-set, and making room in the log."""

from __future__ import annotations

import contextlib

from redis.exceptions import ResponseError

from ...engine import Record
from ...errors import Unconfirmed
from .link import Link
from .wire import Wire


class Records:
    """What was read and written here is remembered, for a server that was emptied."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._known: dict[str, bytes] = {}

    async def recall(self, key: str) -> Record | None:
        """See `Engine.recall`."""
        found = await self._link.call("recall", key)
        if not found:
            return None
        self._known[key] = bytes(found[1])
        return Record(self._known[key], int(found[0]))

    async def register(self, key: str, value: bytes, revision: int) -> int:
        """See `Engine.register`."""
        written = int(await self._link.call("register", key, value, revision, doubt=Unconfirmed))
        self._known[key] = value
        return written

    async def write_again(self, wire: Wire) -> None:
        """The namespace was made anew. What another process has written there meanwhile stays."""
        for key, value in list(self._known.items()):
            with contextlib.suppress(ResponseError):
                await self._link.call_on(wire, "register", key, value, 0)

    async def purge(self, filter: str, first: int, below: int) -> int:
        """See `Engine.purge`."""
        gone, start = 0, max(first, 1)
        while start and start < below:
            went, start = await self._link.call("purge", filter, start, below, doubt=Unconfirmed)
            gone += went
        return gone
