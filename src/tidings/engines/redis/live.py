"""Channels: the server's plain publish-subscribe, so that everybody who speaks it is heard and hears us.

The body travels as it is. Headers are said right before it, on a channel that only our listeners hear.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from ...engine import LISTENER_ROOM, Headers, Lagged, Outgoing, Signal
from ...errors import Closed
from ...subjects import matches, normalise
from .codec import check, packed
from .hearing import Hearing, OnMessage
from .link import Link

_HEADERS: Final = "tidings:headers:"
"""What the channel begins with on which the headers of the next word on a channel are said."""


class Channels:
    def __init__(self, link: Link, hearing: Hearing) -> None:
        self._link = link
        self._hearing = hearing
        self._listeners: set[_Listener] = set()

    async def broadcast(self, channel: str, body: bytes, headers: Headers) -> int:
        """See `Engine.broadcast`: the number of connections that heard it."""
        check(Outgoing(channel, body, dict(headers), ""))
        return int(await self._link.call("say", channel, packed(headers), body, once=True))

    @asynccontextmanager
    async def listen(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[Signal | Lagged]]:
        """See `Engine.listen`."""
        filters = normalise(list(channels))
        listener = _Listener(filters)
        self._listeners.add(listener)
        ears = []
        try:
            for filter in filters:
                pattern = "*" in filter or ">" in filter
                name = _glob(filter) if pattern else filter
                ears.append(await self._hearing.listen(_HEADERS + name, listener.announced(filter), pattern=pattern))
                ears.append(await self._hearing.listen(name, listener.hears(filter), pattern=pattern))
            yield listener
        finally:
            listener.end(StopAsyncIteration())
            self._listeners.discard(listener)
            for ear in ears:
                self._hearing.leave(ear)

    def missed(self) -> None:
        """The connection was lost for a while."""
        for listener in self._listeners:
            listener.miss()

    def close(self) -> None:
        for listener in self._listeners:
            listener.end(Closed("the engine was closed"))


def _glob(filter: str) -> str:
    """The server's pattern that matches all that the filter does; what it matches beyond that is left out here."""
    return re.sub(r"[\[\]?\\^]", r"\\\g<0>", filter).replace(">", "*")


def channels_of(filter: str) -> tuple[str, str]:
    """What is listened to for a filter, as the server names or globs it."""
    return _glob(filter), _HEADERS + _glob(filter)


class _Listener:
    def __init__(self, filters: Sequence[str]) -> None:
        self._filters = filters
        self._kept: deque[Signal | Lagged] = deque()
        self._missed = 0
        self._headers: dict[str, str] = {}
        """Of the next word, which follows at once."""
        self._heard = asyncio.Event()
        self._ended: Exception | None = None

    def announced(self, filter: str) -> OnMessage:
        def take(channel: str, said: bytes) -> None:
            channel = channel.removeprefix(_HEADERS)
            if self._first(channel) == filter:
                with contextlib.suppress(msgspec.DecodeError):
                    self._headers = msgspec.json.decode(said, type=dict[str, str])

        return take

    def hears(self, filter: str) -> OnMessage:
        def hear(channel: str, said: bytes) -> None:
            # Each filter that matches brings its own copy: the first one counts.
            if self._first(channel) == filter:
                headers, self._headers = self._headers, {}
                self._keep(Signal(channel, said, headers))

        return hear

    def _first(self, channel: str) -> str | None:
        return next((filter for filter in self._filters if matches(filter, channel)), None)

    def _keep(self, signal: Signal) -> None:
        if len(self._kept) == LISTENER_ROOM and isinstance(self._kept.popleft(), Signal):
            self._missed += 1
        self._kept.append(signal)
        self._heard.set()

    def miss(self) -> None:
        """What was said while the connection was lost is missing here."""
        if len(self._kept) < LISTENER_ROOM:
            self._kept.append(Lagged(None))
        else:
            self._missed += 1  # much is missing anyhow
        self._heard.set()

    def end(self, how: Exception) -> None:
        self._ended = self._ended or how
        self._heard.set()

    def __aiter__(self) -> _Listener:
        return self

    async def __anext__(self) -> Signal | Lagged:
        # No generator: one that is cancelled while it waits would be over for good.
        while not self._kept:
            if self._ended:
                raise self._ended
            self._heard.clear()
            await self._heard.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return Lagged(missed)
        return self._kept.popleft()
