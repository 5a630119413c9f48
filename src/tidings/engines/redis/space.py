"""How full the store is: the namespace's own limit, and the memory that the server may use."""

from __future__ import annotations

import asyncio
from typing import Final

from ...engine import Space
from ...errors import EngineError, StoreFull
from .link import Link

_FRESH: Final = 2.0
"""Seconds for which an answer is good enough."""


class Gauge:
    """The namespace's own limit is kept by the server with each message. How much memory is used is asked now and
    then; in between what is published here is counted along, and the server's own refusal stays the last word."""

    def __init__(self, link: Link, own_limit: int) -> None:
        self.own_limit = own_limit
        self._link = link
        self._memory = Space(0)
        self._added = 0
        self._asked = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def read(self) -> Space:
        """See `Engine.space`: of the limits, the one that is nearest."""
        own = Space(int(await self._link.call("space")), self.own_limit)
        await self._renew()
        return max((space for space in (own, self._memory) if space.limit > 0), key=lambda s: s.share, default=own)

    def admit(self, size: int) -> None:
        """Count what is about to be published. Raises `StoreFull` when publishers may add no more."""
        now = asyncio.get_running_loop().time()
        full = not self._memory.takes(self._added + size)
        if now - self._asked > (_FRESH / 10 if full else _FRESH) and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask(), name="tidings redis space")
        if full:
            raise StoreFull(
                f"{self._memory.used:,} of the {self._memory.limit:,} bytes of memory that {self._link.address.shown} "
                "may use (`maxmemory`) are used, the rest is kept for dead letters and retries: start workers for what "
                "waits, act on the dead letters, or raise the limit"
            )
        self._added += size

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> None:
        try:
            await self._renew()
        except EngineError:
            self._memory, self._added = Space(0), 0  # not known: the server decides

    async def _renew(self) -> None:
        added = self._added
        info = await self._link.command("INFO", "memory")
        facts = dict(line.partition(":")[::2] for line in info.decode().splitlines())
        self._memory = Space(int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0)) or -1)
        self._added -= added
        self._asked = asyncio.get_running_loop().time()
