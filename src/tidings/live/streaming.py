"""Streaming replies: a responder that yields, and an asker that takes one item after the other.

The asker serves a channel of its own and names it in its question. The responder delivers each item there as a request,
some of them at once, and the asker answers each when it has been taken: so nobody runs ahead of a slow asker,
and a responder learns at its next item or beat that the asker has gone. Beats (items without a body) keep telling both
sides that the other one lives while the generator takes its time. The reply to the question itself is the end: it says
how many items there were, or carries the error.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from ..clock import Clock, timeout
from ..engine import Engine, Headers, Reply
from ..errors import EngineUnavailable, InvalidMessage, NoResponder, RequestTimeout, StreamBroken

CHANNEL: Final = "tidings-stream"
BEAT: Final = "tidings-beat"
COUNT: Final = "tidings-count"
NUMBER: Final = "tidings-number"
_ITEMS: Final = 64
"""Items on their way at once."""
_BYTES: Final = 2 * 1024 * 1024
"""Their size, unless it is one alone. What waits for a slow asker waits at the server, which hangs up on who lets too
much wait there."""
_BEATS: Final = 3
"""Beats in the time after which the other side is taken for dead."""
_AS_LONG_AS_IT_TAKES: Final = 365 * 86_400.0
_PRIVATE = re.compile(r"_r\.[0-9a-f]{32}\Z")
_NO_HEADERS: Final[Headers] = {}


def private_channel() -> str:
    """A channel that nobody else uses."""
    return f"_r.{secrets.token_hex(16)}"


def check_private(channel: str) -> str:
    """The channel, or `InvalidMessage`: a question must not make its responder speak elsewhere in the asker's stead."""
    if not _PRIVATE.match(channel):
        raise InvalidMessage(f"{channel[:80]!r} is no channel of an asker")
    return channel


BROKEN_OFF: Final = Reply(b"", {COUNT: "broken off"})
"""Ends the stream of an asker that could not be reached, if it is there all the same."""


class AskerGone(Exception):
    """Nobody takes the items any more, or the way there was lost, and items with it."""


class Stopped(Exception):
    """The responder's process stops in the middle of a stream."""

    def __init__(self) -> None:
        super().__init__("the process that streamed stops: ask again, another one answers")


async def receive(
    engine: Engine, clock: Clock, question: tuple[str, bytes, Headers], silence: float
) -> AsyncGenerator[Reply, None]:
    """Ask and yield each item's reply, at last the one that ends it (its headers have `COUNT`, an error, or it is the
    only answer of a responder that does not stream).

    Raises `NoResponder`, `RequestTimeout` when nothing came within `silence` seconds, `StreamBroken` when the responder
    was silent for so long later on. Leaving the iteration tells the responder.
    """
    subject, body, headers = question
    channel = private_channel()
    inlet = _Inlet(clock)
    async with engine.serve(channel, "asker", inlet.take):
        headers = {**headers, CHANNEL: channel, BEAT: repr(silence / _BEATS)}
        asking = asyncio.create_task(engine.request(subject, body, headers, _AS_LONG_AS_IT_TAKES))
        try:
            async for reply in inlet.replies(asking, subject, silence):
                yield reply
        finally:
            inlet.leave()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


class _Inlet:
    """What has arrived at an asker and waits for its turn."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._arrived: dict[int, tuple[Reply, asyncio.Future[None]]] = {}
        self._next = 0
        self._heard = False
        self._left = False
        self._news = asyncio.Event()

    async def take(self, subject: str, body: bytes, headers: Headers) -> Reply:
        """Serves the channel: an item is answered when it has been taken, a beat at once."""
        self._heard = True
        self._news.set()
        if NUMBER in headers and not self._left:
            taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._arrived[int(headers[NUMBER])] = Reply(body, headers), taken
            await taken
        return Reply(b"", _NO_HEADERS)

    def leave(self) -> None:
        """Nobody takes anything any more: let go of who waits for that."""
        self._left = True
        for _, taken in self._arrived.values():
            if not taken.done():
                taken.set_result(None)

    async def replies(self, asking: asyncio.Task[Reply], subject: str, silence: float) -> AsyncIterator[Reply]:
        """Each item in its turn, and the end."""
        asking.add_done_callback(lambda _: self._news.set())
        while True:
            while (arrived := self._arrived.pop(self._next, None)) is not None:
                self._next += 1
                arrived[1].set_result(None)
                yield arrived[0]
            if asking.done():
                end = asking.result()
                if end.headers.get(COUNT) == BROKEN_OFF.headers[COUNT]:
                    raise StreamBroken(subject, self._next)
                if self._next >= int(end.headers.get(COUNT, 0)):
                    yield end
                    return
            # The end may overtake the last items: then only these are waited for.
            try:
                async with timeout(self._clock, silence):
                    await self._news.wait()
            except TimeoutError:
                error = StreamBroken(subject, self._next) if self._heard else RequestTimeout(subject, silence)
                raise error from None
            self._news.clear()


async def deliver(
    engine: Engine, clock: Clock, question: Headers, items: AsyncGenerator[bytes, None], stopping: asyncio.Event
) -> Reply:
    """Deliver the items to who asked, and return the reply that ends the stream. Closes the generator in any case.

    Raises what the generator raises, `Stopped` when `stopping` is set before it is through, and `AskerGone`.
    """
    outlet = _Outlet(engine, clock, check_private(question[CHANNEL]), _beat_of(question))
    pouring = asyncio.create_task(outlet.pour(items))
    beside: set[asyncio.Task[Any]] = {asyncio.create_task(outlet.beat()), asyncio.create_task(stopping.wait())}
    try:
        await asyncio.wait({pouring, *beside}, return_when=asyncio.FIRST_COMPLETED)
        if not pouring.done():
            for task in beside:
                if task.done() and (error := task.exception()) is not None:
                    raise error
            raise Stopped
        return Reply(b"", {COUNT: str(pouring.result())})
    finally:
        for task in (pouring, *beside):
            task.cancel()
        await asyncio.gather(pouring, *beside, return_exceptions=True)


def _beat_of(question: Headers) -> float:
    """Seconds between beats, whatever the question says."""
    try:
        beat = float(question[BEAT])
    except (KeyError, ValueError):
        return 1.0
    return beat if 0.01 <= beat <= 60.0 else 1.0


class _Window:
    """What is on its way to one asker. One at a time enters."""

    def __init__(self) -> None:
        self._items = 0
        self._bytes = 0
        self._left = asyncio.Event()

    async def enter(self, size: int) -> None:
        while self._items and (self._items == _ITEMS or self._bytes + size > _BYTES):
            self._left.clear()
            await self._left.wait()
        self._items += 1
        self._bytes += size

    def leave(self, size: int) -> None:
        self._items -= 1
        self._bytes -= size
        self._left.set()


class _Outlet:
    """The way to one asker."""

    def __init__(self, engine: Engine, clock: Clock, channel: str, beat: float) -> None:
        self._engine = engine
        self._clock = clock
        self._channel = channel
        self._beat = beat
        self._window = _Window()
        self._sending: set[asyncio.Task[None]] = set()
        self._gone: Exception | None = None

    async def beat(self) -> None:
        """Show that somebody is here, for as long as somebody is there."""
        while True:
            await self._ask(b"", {BEAT: "1"}, _BEATS * self._beat)
            await self._clock.sleep(self._beat)

    async def pour(self, items: AsyncGenerator[bytes, None]) -> int:
        """Deliver all; returns how many they were, when the last one was taken. An error waits for that too."""
        number = 0
        try:
            async with aclosing(items):
                async for body in items:
                    await self._window.enter(len(body))
                    if self._gone is not None:
                        raise self._gone
                    task = asyncio.create_task(self._send(number, body))
                    self._sending.add(task)
                    task.add_done_callback(self._sending.discard)
                    number += 1
        except Exception:
            await self._all_taken()
            raise
        else:
            await self._all_taken()
        finally:
            for task in self._sending:
                task.cancel()
        return number

    async def _all_taken(self) -> None:
        # Those behind an item that was lost are never taken.
        while self._sending and self._gone is None:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        if self._gone is not None:
            raise self._gone

    async def _send(self, number: int, body: bytes) -> None:
        try:
            await self._ask(body, {NUMBER: str(number)}, _AS_LONG_AS_IT_TAKES)
        except Exception as error:
            self._gone = error
        finally:
            self._window.leave(len(body))

    async def _ask(self, body: bytes, headers: Headers, timeout: float) -> None:
        try:
            await self._engine.request(self._channel, body, headers, timeout)
        except (NoResponder, RequestTimeout, EngineUnavailable) as error:
            raise AskerGone(str(error)) from error
