"""How full the store is, as far as a client can know: the account's limit, and that of the stream itself."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any, Final

from ...engine import Space
from ...errors import EngineError, StoreFull
from .api import JetStream
from .layout import Layout
from .link import Denied

_FRESH: Final = 2.0
"""Seconds for which an answer is good enough."""
_ANSWERS_WITHIN: Final = 1.0


class Gauge:
    """Asks the server now and then, and counts along in between, so that a publish costs no question of its own.

    What others publish it learns with the next answer. The server's own refusal stays the last word.
    """

    def __init__(self, js: JetStream, layout: Layout) -> None:
        self._js = js
        self._layout = layout
        self._spaces: list[Space] = []
        self._asked = 0.0
        self._added = 0
        self._room = 0.0
        """Bytes that publishers may have added since the last answer."""
        self._asking: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def read(self) -> Space:
        """See `Engine.space`: of the limits, the one that is nearest."""
        spaces = await self._read()
        return max((space for space in spaces if space.limit > 0), key=lambda space: space.share, default=spaces[0])

    async def _read(self) -> list[Space]:
        try:
            account: dict[str, Any] | None = await self._js.call("INFO")
        except Denied:
            account = None
        return _spaces(account, await self._js.stream(self._layout.events))

    def has_room(self, size: int) -> bool:
        """Whether it is known that so many bytes may be published; then they are counted."""
        if not self._js.link.connected:
            return True
        if not self._asked or self._added + size > self._room:
            return False
        if self._age > _FRESH:
            self._ask()
        self._added += size
        return True

    async def make_room(self, size: int) -> None:
        """Count what is about to be published. Raises `StoreFull` when publishers may add no more."""
        if not self._asked or (self._refusing(size) and self._age > _FRESH / 10):
            await asyncio.wait([self._ask()])  # the first time, or somebody may have made space meanwhile
        if (space := self._refusing(size)) is not None:
            raise StoreFull(
                f"{space.used + self._added:,} of the {space.limit:,} bytes that the server may store are used, the "
                "rest is kept for dead letters and retries: start workers for what waits, act on the dead letters, or "
                "raise the limit"
            )
        self._added += size

    def _refusing(self, size: int) -> Space | None:
        """The limit that leaves publishers no room for so many bytes more."""
        for space in self._spaces:
            if not space.takes(self._added + size):
                return space
        return None

    @property
    def _age(self) -> float:
        return asyncio.get_running_loop().time() - self._asked

    def _ask(self) -> asyncio.Task[None]:
        """Begin to ask, unless somebody does."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._renew(), name="tidings-space")
        return self._asking

    async def _renew(self) -> None:
        added = self._added
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN):
                self._spaces = await self._read()
                self._added -= added
        except (EngineError, TimeoutError):
            self._spaces, self._added = [], 0  # not known: the server decides
        self._room = min((space.room for space in self._spaces), default=inf)
        self._asked = asyncio.get_running_loop().time()


def _spaces(account: dict[str, Any] | None, stream: dict[str, Any]) -> list[Space]:
    """What the stream says, then what the account says."""
    config = stream["config"]
    found = [Space(int(stream["state"]["bytes"]), int(config.get("max_bytes") or -1))]
    if account is not None:
        copies = int(config.get("num_replicas") or 1)
        tiers = account.get("tiers") or {}
        tier = tiers.get(f"R{copies}", account)
        limit = int((tier.get("limits") or {}).get("max_storage") or -1)
        shared = 1 if tiers else copies  # an account without tiers counts every copy
        found.append(Space(int(tier.get("storage", 0)) // shared, limit // shared if limit > 0 else -1))
    return found
