"""What is said and asked live, and stored nowhere: part of seam 1."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from .subjects import matches

Headers: TypeAlias = Mapping[str, str]


ERROR: Final = "tidings-error"
"""Header of a reply that is an error: the error's type."""


class Reply(msgspec.Struct, frozen=True):
    """The answer to a request, as it came."""

    body: bytes
    headers: Headers

    @property
    def error(self) -> str:
        """The type of the error that it carries, or nothing."""
        return self.headers.get(ERROR, "")


Responder: TypeAlias = Callable[[str, bytes, Headers], Awaitable[Reply]]


class Signal(msgspec.Struct, frozen=True):
    """What `listen` yields: something said on a live channel."""

    channel: str
    body: bytes
    headers: Headers


LISTENER_ROOM: Final = 10_000
"""Signals kept for a listener that takes them slowly; beyond that its oldest ones are dropped, and it is told."""


class Lagged(msgspec.Struct, frozen=True):
    """What `listen` yields where something is missing: ask for the state, do not count on having heard everything."""

    missed: int | None
    """Signals dropped because they were taken too slowly; None: the connection was lost for a while, and nobody knows
    how many there were."""


class Backlog(AsyncIterator[Signal | Lagged]):
    """What one listener has heard and not yet taken: what `listen` yields, for every engine."""

    def __init__(self, filters: Sequence[str], room: int = LISTENER_ROOM) -> None:
        self._filters = tuple(filters)
        self._room = room
        self._kept: deque[Signal | Lagged] = deque()
        self._missed: int | None = 0
        """What is missing before the oldest one kept, as in `Lagged`."""
        self._news = asyncio.Event()
        self._ended: Exception | None = None

    def filter_of(self, channel: str) -> str | None:
        """The filter by which the channel is heard. Where each one that matches brings a copy of its own, the first
        one counts."""
        return next((filter for filter in self._filters if matches(filter, channel)), None)

    def add(self, news: Signal | Lagged) -> None:
        """Keep what was heard, or `Lagged` where something is missing. Of a listener that is too far behind the oldest
        one goes, and it is told."""
        if len(self._kept) >= self._room:
            gone = self._kept.popleft()
            if isinstance(gone, Lagged):
                self._missed = None
            elif self._missed is not None:
                self._missed += 1
        self._kept.append(news)
        self._news.set()

    def end(self, how: Exception) -> None:
        """The iteration ends with this, once all that was kept is taken. The first end counts."""
        self._ended = self._ended or how
        self._news.set()

    async def __anext__(self) -> Signal | Lagged:
        # No generator: one that is cancelled while it waits would be over for good.
        while not self._kept:
            if self._ended:
                raise self._ended
            self._news.clear()
            await self._news.wait()
        if self._missed != 0:
            missed, self._missed = self._missed, 0
            return Lagged(missed)
        return self._kept.popleft()
