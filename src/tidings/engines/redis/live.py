"""Channels: the server's plain publish-subscribe, so that everybody who speaks it is heard and hears us.

The body travels as it is. Headers are said right before it, on a channel that only our listeners hear.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from ...engine import Backlog, Headers, Lagged, Outgoing, Signal
from ...errors import Closed
from ...subjects import normalise
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
        """See `Engine.broadcast`: the number of connections that heard it. It is said once: when the connection is lost
        on the way it raises `EngineUnavailable` at once, since saying it again could be heard twice."""
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
            listener.add(Lagged(None))

    def close(self) -> None:
        for listener in self._listeners:
            listener.end(Closed("the engine was closed"))


def _glob(filter: str) -> str:
    """The server's pattern that matches all that the filter does; what it matches beyond that is left out here."""
    return re.sub(r"[\[\]?\\^]", r"\\\g<0>", filter).replace(">", "*")


def channels_of(filter: str) -> tuple[str, str]:
    """What is listened to for a filter, as the server names or globs it."""
    return _glob(filter), _HEADERS + _glob(filter)


class _Listener(Backlog):
    """A backlog, and the headers of the next word, which follows at once."""

    def __init__(self, filters: Sequence[str]) -> None:
        super().__init__(filters)
        self._headers: dict[str, str] = {}

    def announced(self, filter: str) -> OnMessage:
        def take(channel: str, said: bytes) -> None:
            if self.filter_of(channel.removeprefix(_HEADERS)) == filter:
                with contextlib.suppress(msgspec.DecodeError):
                    self._headers = msgspec.json.decode(said, type=dict[str, str])

        return take

    def hears(self, filter: str) -> OnMessage:
        def hear(channel: str, said: bytes) -> None:
            if self.filter_of(channel) == filter:
                headers, self._headers = self._headers, {}
                self.add(Signal(channel, said, headers))

        return hear
