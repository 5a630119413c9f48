"""What the memory engine does without storing: channels, requests and answers."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final

from tidings.engine import Headers, Lagged, Reply, Responder, Signal
from tidings.errors import Closed
from tidings.subjects import matches

from .bell import Bell

_log: Final = logging.getLogger("tidings.memory")


class Listener(AsyncIterator[Signal | Lagged]):
    """One `listen` of one connection: what was said and not yet taken."""

    def __init__(self, channels: Sequence[str], room: int) -> None:
        self._channels = tuple(channels)
        self._room = room
        self._heard: deque[Signal] = deque()
        self._news = Bell()
        self._missed = 0
        self._left = False
        self._closed = False

    def hears(self, channel: str) -> bool:
        """Whether the channel is one of those listened to."""
        return any(matches(filter, channel) for filter in self._channels)

    def tell(self, signal: Signal) -> None:
        """Queue a signal; of a listener that is too far behind the oldest one goes, and it is told."""
        if len(self._heard) >= self._room:
            self._missed += 1
            self._heard.popleft()
        self._heard.append(signal)
        self._news.ring()

    def leave(self, *, closed: bool = False) -> None:
        """The iteration ends, with `Closed` if the connection was closed under it."""
        self._left = True
        self._closed = self._closed or closed
        self._news.ring()

    async def __anext__(self) -> Signal | Lagged:
        while not self._heard:
            if self._closed:
                raise Closed("the engine was closed while something listened")
            if self._left:
                raise StopAsyncIteration
            await self._news.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return Lagged(missed)
        return self._heard.popleft()


class Channels:
    """Who listens to what."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._listeners: dict[Listener, None] = {}

    def enter(self, channels: Sequence[str]) -> Listener:
        """Listen from now on."""
        listener = Listener(channels, self._room)
        self._listeners[listener] = None
        return listener

    def leave(self, listener: Listener) -> None:
        """Listen no longer."""
        self._listeners.pop(listener, None)
        listener.leave()

    def say(self, signal: Signal) -> int:
        """Tell all who listen; returns how many they are."""
        listeners = [listener for listener in self._listeners if listener.hears(signal.channel)]
        for listener in listeners:
            listener.tell(signal)
        return len(listeners)


class Server:
    """One `serve` of one connection, with the answers it is working on."""

    def __init__(self, subject: str, group: str, responder: Responder) -> None:
        self.subject = subject
        self.group = group
        self._responder = responder
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, subject: str, body: bytes, headers: Headers, answer: asyncio.Future[Reply | None]) -> None:
        """Begin to answer; the first answer to a request is the one that counts."""
        task = asyncio.create_task(self._answer(subject, body, headers, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, subject: str, body: bytes, headers: Headers, answer: asyncio.Future[Reply | None]) -> None:
        try:
            reply = await self._responder(subject, body, headers)
        except Exception:
            # As over a network: the asker learns nothing and runs into its timeout. Responders answer their errors.
            _log.exception("the responder of %s raised instead of answering", subject)
            return
        if not answer.done():
            answer.set_result(reply)

    async def finish(self) -> None:
        """Wait for the answers that were begun; cancelling this cancels them."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel(self) -> None:
        """Give up the answers that were begun."""
        for task in self._tasks:
            task.cancel()


class Servers:
    """Who answers what. Each group of each filter gets every request, and its members take turns."""

    def __init__(self) -> None:
        self._shares: dict[tuple[str, str], deque[Server]] = {}

    def enter(self, server: Server) -> None:
        """Answer from now on."""
        self._shares.setdefault((server.subject, server.group), deque()).append(server)

    def leave(self, server: Server) -> None:
        """Take no more requests."""
        share = self._shares.get((server.subject, server.group), deque())
        if server in share:
            share.remove(server)
        if not share:
            self._shares.pop((server.subject, server.group), None)

    def chosen(self, subject: str) -> list[Server]:
        """One member of each group that answers this subject."""
        members: list[Server] = []
        for (filter, _), share in self._shares.items():
            if matches(filter, subject):
                members.append(share[0])
                share.rotate(-1)
        return members
