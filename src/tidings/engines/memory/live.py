"""What the memory engine does without storing: channels, requests and answers."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from tidings.engine import Backlog, Headers, Reply, Responder, Signal
from tidings.subjects import matches

_log: Final = logging.getLogger("tidings.memory")


class Channels:
    """Who listens to what."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._listeners: dict[Backlog, None] = {}

    def enter(self, channels: Sequence[str]) -> Backlog:
        """Listen from now on."""
        listener = Backlog(channels, self._room)
        self._listeners[listener] = None
        return listener

    def leave(self, listener: Backlog, how: Exception) -> None:
        """Listen no longer."""
        self._listeners.pop(listener, None)
        listener.end(how)

    def say(self, signal: Signal) -> int:
        """Tell all who listen; returns how many they are."""
        listeners = [listener for listener in self._listeners if listener.filter_of(signal.channel)]
        for listener in listeners:
            listener.add(signal)
        return len(listeners)


class Server:
    """One `serve` of one connection, with the answers it is working on."""

    def __init__(self, subject: str, group: str, responder: Responder) -> None:
        self.subject = subject
        self.group = group
        self._responder = responder
        self._tasks: set[asyncio.Task[None]] = set()
        self._given_up = False

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
        if not answer.done() and not self._given_up:
            answer.set_result(reply)

    async def finish(self) -> None:
        """Wait for the answers that were begun; cancelling this cancels them."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel(self) -> None:
        """Give up the answers that were begun: what their responders make of it reaches nobody."""
        self._given_up = True
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
