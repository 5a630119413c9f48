"""Channels and requests: plain NATS, nothing is stored."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ...crew import Crew
from ...engine import Backlog, Headers, Lagged, Reply, Responder, Signal
from ...errors import Closed, EngineUnavailable, NoResponder, RequestTimeout, TooLarge
from ...subjects import check_subject, normalise
from .connection import Frame, OnFrame
from .link import Disconnected, Link
from .outbound import Parcel
from .services import Endpoint, Services
from .strangers import answerable
from .wire import checked_lines, clean

log = logging.getLogger("tidings.engines.nats")


class Live:
    def __init__(self, link: Link, timeout: float, limit: Callable[[], int]) -> None:
        self._link = link
        self._limit = limit
        self._timeout = timeout
        self._services = Services(link)
        self._listeners: set[Backlog] = set()
        self._generation = link.generation

    async def broadcast(self, channel: str, body: bytes, headers: Headers) -> bool:
        """See `Engine.broadcast`: True or False. It is sent once: over a connection that is lost nobody knows who has
        heard it, and repeated it could be heard twice."""
        lines = self._checked(channel, body, headers)
        await self._link.ready(self._timeout)
        answer = await self._link.ask(channel, body, lines)
        try:
            # With nobody there the server says so before it answers the ping of `flush`.
            await self._link.flush()
            for _ in range(5):
                if answer.done():
                    break
                await asyncio.sleep(0)
            return not (answer.done() and answer.result().status == "503")
        except Disconnected as error:
            raise EngineUnavailable(
                f"the connection was lost while {channel} was told, heard or not: {error}"
            ) from error
        finally:
            answer.cancel()

    @asynccontextmanager
    async def listen(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[Signal | Lagged]]:
        """See `Engine.listen`."""
        filters = normalise(list(channels))
        listener = Backlog(filters)
        subscriptions = [await self._link.subscribe(filter, _hears(listener, filter)) for filter in filters]
        try:
            await self._link.outlast(self._link.flush, self._timeout)
            self._listeners.add(listener)
            yield listener
        finally:
            listener.end(StopAsyncIteration())
            self._listeners.discard(listener)
            for subscription in subscriptions:
                await subscription.close()

    async def request(self, subject: str, body: bytes, headers: Headers, timeout: float) -> Reply:
        """See `Engine.request`. It is sent once: a responder may not be asked twice for one question."""
        lines = self._checked(subject, body, headers)
        left = timeout
        if not self._link.connected:
            clock = asyncio.get_running_loop().time
            began = clock()
            await self._link.ready(timeout)
            left = max(0.0, timeout - (clock() - began))
        try:
            frame = await self._link.request(subject, body, lines, left)
        except TimeoutError:
            raise RequestTimeout(subject, timeout) from None
        except Disconnected as error:
            raise EngineUnavailable(f"the connection was lost while {subject} was asked: {error}") from error
        if frame.status == "503":
            raise NoResponder(subject)
        return Reply(frame.body, clean(frame.headers))

    @asynccontextmanager
    async def serve(self, subject: str, group: str, responder: Responder) -> AsyncIterator[None]:
        """See `Engine.serve`. Requests run beside each other; leaving waits for those that have begun."""
        answering = _Answering(self._link, responder, Endpoint(subject, group))
        subscription = await self._link.subscribe(subject, answering.crew.take, queue=group)
        found = not subject.startswith("_")  # a channel of one asker is no service
        try:
            if found:
                await self._services.enter(answering.endpoint)
            await self._link.outlast(self._link.flush, self._timeout)
            yield
        finally:
            if found:
                await self._services.leave(answering.endpoint)
            await subscription.drain()
            await answering.crew.finish()

    def close(self) -> None:
        for listener in self._listeners:
            listener.end(Closed("the engine was closed"))

    def reconnected(self) -> None:
        """The connection was lost, or stands again: then every listener is told that it may have missed something."""
        if self._link.generation != self._generation:
            self._generation = self._link.generation
            for listener in self._listeners:
                listener.add(Lagged(None))

    def _checked(self, subject: str, body: bytes, headers: Headers) -> str:
        """The header lines."""
        check_subject(subject)
        lines = checked_lines(headers)
        size = len(subject) + len(body) + len(lines)
        if size > self._limit():
            raise TooLarge(size, self._limit())
        return lines


class _Answering:
    """One responder and its questions. Answers that come about at the same time leave in one write."""

    def __init__(self, link: Link, responder: Responder, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.crew: Crew[Frame] = Crew(f"tidings-answer-{endpoint.subject}", self._answer, self._send)
        self._link = link
        self._responder = responder
        self._answers: list[Parcel] = []

    async def _answer(self, frame: Frame) -> None:
        begun = time.monotonic_ns()
        try:
            reply = await self._responder(frame.subject, frame.body, clean(frame.headers))
            self.endpoint.answered(begun, reply.error)
            if answerable(frame.reply):
                if self._link.crowded:
                    await self._link.room()
                self._answers.append(self._link.parcel(frame.reply, reply.body, reply.headers))
        except (EngineUnavailable, Closed, TooLarge) as error:
            log.warning("the answer to %s could not be sent: %s", frame.subject, error)
        except Exception as error:
            self.endpoint.answered(begun, type(error).__qualname__)
            log.exception("the responder of %s failed; the asker will run into its timeout", frame.subject)

    def _send(self) -> None:
        if not self._answers:
            return
        answers, self._answers = self._answers, []
        try:
            self._link.send(answers)
        except (EngineUnavailable, Closed) as error:
            log.warning("%d answers to %s could not be sent: %s", len(answers), self.endpoint.subject, error)


def _hears(listener: Backlog, filter: str) -> OnFrame:
    def hear(frame: Frame) -> None:
        if listener.filter_of(frame.subject) == filter:
            listener.add(Signal(frame.subject, frame.body, clean(frame.headers)))

    return hear
