"""Reading the log without changing anything for anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...engine import Entry
from ...errors import Closed
from ...subjects import matches
from .codec import PAGE, entry_of
from .hearing import Ear, Hearing
from .link import Link

_LOOK_AGAIN = 5.0
"""Seconds after which a waiting read looks by itself, should no bell have rung."""


class Reader:
    def __init__(self, link: Link, hearing: Hearing) -> None:
        self._link = link
        self._hearing = hearing
        self._ears: list[Ear] = []
        self._starting = asyncio.Lock()
        self._arrived = asyncio.Event()
        self._closed = False

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float) -> list[Entry]:
        """See `Engine.read`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        if wait > 0:
            await self._start()
        found: list[Entry] = []
        while not self._closed:
            arrived = self._arrived
            after, more, rest, page = await self._link.call("read", after, limit - len(found), PAGE, *filters)
            found += [entry_of(*raw) for raw in page]
            if more and len(found) < limit:
                continue
            left = until - loop.time()
            if found or left <= 0:
                return found
            pause = min(left, float(rest) + 0.001 if rest else _LOOK_AGAIN, _LOOK_AGAIN)
            try:
                async with asyncio.timeout(max(pause, 0.0)):
                    await arrived.wait()
            except TimeoutError:
                continue
        raise Closed("the engine was closed")

    async def subjects(self, filter: str) -> dict[str, int]:
        """See `Engine.subjects`."""
        flat = await self._link.call("subjects")
        counted = zip(flat[::2], flat[1::2], strict=True)
        found = {name.decode(): int(count) for name, count in counted}
        return {name: count for name, count in found.items() if matches(filter, name)}

    def ring(self) -> None:
        """Let every waiting read look again."""
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def close(self) -> None:
        self._closed = True
        self.ring()

    async def _start(self) -> None:
        async with self._starting:
            if not self._ears:
                tag = f"{{{self._link.namespace}}}"
                self._ears = [
                    await self._hearing.listen(f"{tag}:{bell}", lambda _channel, _body: self.ring())
                    for bell in ("arrived", "later")
                ]
