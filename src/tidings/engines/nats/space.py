"""How full the store is, as far as a client can know: the account's limit, and that of the stream itself."""

from __future__ import annotations

import asyncio
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
        self._space = Space(0)
        self._asked = 0.0
        self._added = 0
        self._asking: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def read(self) -> Space:
        """See `Engine.space`."""
        timeout = self._js.timeout
        try:
            account: dict[str, Any] | None = await self._js.call("INFO", timeout=timeout)
        except Denied:
            account = None
        stream = await self._js.call(f"STREAM.INFO.{self._layout.events}", timeout=timeout)
        return _tightest(account, stream)

    async def admit(self, size: int) -> None:
        """Count what is about to be published. Raises `StoreFull` when publishers may add no more."""
        if not self._js.link.connected:
            return
        if not self._asked or (not self._space.takes(self._added + size) and self._age > _FRESH / 10):
            await self._ask()  # the first time, or somebody may have made space meanwhile
        elif self._age > _FRESH:
            self._ask()
        if not self._space.takes(self._added + size):
            used, limit = self._space.used + self._added, self._space.limit
            raise StoreFull(
                f"{used:,} of the {limit:,} bytes that the server may store are used, the rest is kept for dead "
                "letters and retries: start workers for what waits, act on the dead letters, or raise the limit"
            )
        self._added += size

    @property
    def _age(self) -> float:
        return asyncio.get_running_loop().time() - self._asked

    def _ask(self) -> asyncio.Future[None]:
        """Begin to ask, unless somebody does; cancelling who waits for it does not end it."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._renew(), name="tidings-space")
        return asyncio.shield(self._asking)

    async def _renew(self) -> None:
        added = self._added
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN):
                self._space = await self.read()
                self._added -= added
        except (EngineError, TimeoutError):
            self._space, self._added = Space(0), 0  # not known: the server decides
        self._asked = asyncio.get_running_loop().time()


def _tightest(account: dict[str, Any] | None, stream: dict[str, Any]) -> Space:
    """The one of the limits that leaves least."""
    config, used = stream["config"], int(stream["state"]["bytes"])
    copies = int(config.get("num_replicas") or 1)
    found = [Space(used, int(config.get("max_bytes") or -1))]
    if account is not None:
        tier = (account.get("tiers") or {}).get(f"R{copies}", account)
        limit = int((tier.get("limits") or {}).get("max_storage") or -1)
        # An account without tiers counts every copy.
        shared = 1 if account.get("tiers") else copies
        found.append(Space(int(tier.get("storage", 0)) // shared, limit // shared if limit > 0 else -1))
    limited = [space for space in found if space.limit > 0]
    return max(limited, key=lambda space: space.share, default=Space(used))
