"""The log reader: direct gets, so that a user who may only read and publish can follow the log too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from ...engine import Entry
from ...errors import Closed
from ...subjects import matches, normalise
from .api import PAGE, JetStream
from .connection import Frame
from .layout import Layout
from .subscriptions import Subscription
from .wire import direct_entry

_POLLS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_POLL: Final = 0.5


class Reader:
    def __init__(self, js: JetStream, layout: Layout) -> None:
        self._js = js
        self._layout = layout
        self._waiting: set[asyncio.Event] = set()
        self._closed = False

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float) -> list[Entry]:
        """See `Engine.read`."""
        filters = normalise(list(filters))
        found = await self._stored(filters, after, limit)
        if found or wait <= 0 or not filters:
            return found
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                return await self._await(filters, after, limit)
        return []

    def close(self) -> None:
        self._closed = True
        for heard in self._waiting:
            heard.set()

    async def _await(self, filters: Sequence[str], after: int, limit: int) -> list[Entry]:
        """Listen on the subjects themselves: what is published there is stored within a moment.

        That is a hint only; what nobody publishes directly (delayed messages) is found by looking now and then.
        """
        heard = asyncio.Event()
        self._waiting.add(heard)

        def hear(_: Frame) -> None:
            heard.set()

        subscriptions: list[Subscription] = []
        try:
            for filter in filters:
                subscriptions.append(await self._js.link.subscribe(filter, hear))  # noqa: PERF401
            pauses = iter(_POLLS)
            while not (found := await self._stored(filters, after, limit)):
                if self._closed:
                    raise Closed("the engine was closed")
                if heard.is_set():
                    heard.clear()
                    pauses = iter(_POLLS)
                pause = next(pauses, _POLL)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await heard.wait()
            return found
        finally:
            self._waiting.discard(heard)
            for subscription in subscriptions:
                await subscription.close()

    async def _stored(self, filters: Sequence[str], after: int, limit: int) -> list[Entry]:
        if not filters or limit <= 0:
            return []
        # One pass over the narrowest filter that covers all, so that nothing stored meanwhile is overtaken.
        wide = filters[0] if len(filters) == 1 else _common(filters)
        size = min(limit, PAGE) if len(filters) == 1 else PAGE
        found: list[Entry] = []
        async for frames in self._js.pages(self._layout.events, wide, after + 1, size):
            for frame in frames:
                subject = frame.header("Nats-Subject")
                if len(filters) == 1 or any(matches(filter, subject) for filter in filters):
                    found.append(direct_entry(frame))
                    if len(found) == limit:
                        return found
        return found


def _common(filters: Sequence[str]) -> str:
    """The narrowest `a.b.>` that covers all filters."""
    first, *others = (filter.split(".") for filter in filters)
    shared: list[str] = []
    for place, part in enumerate(first[:-1]):
        if part in ("*", ">") or any(len(other) <= place + 1 or other[place] != part for other in others):
            break
        shared.append(part)
    return ".".join([*shared, ">"])
