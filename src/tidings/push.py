"""Push: completion events to browsers, by server-sent events that resume.

    engine.read ──> Hub (one a process: what was read last is kept) ──> a stream a browser

The id of each event is its place in the log, so a browser that reconnects (with the `Last-Event-ID` it sends by itself)
is given what it missed, from any web process. One process reads the log once, however many browsers it has. A browser
has no queue of its own, only a position: one that is slow reads from the log what is no longer kept here, and one that
takes nothing for `SEND_TIMEOUT` seconds is disconnected.

Format: `event:` is the subject, `id:` the place, `data:` one line of JSON
`{"id", "subject", "time", "correlation", "causation", "data"}`. Two more events: `ready` opens each stream and says
whether it was `resumed`; `reset` says that something may have been missed: reload what is shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from .engine import Engine, Entry
from .errors import Closed, Conflict, DecodeError, EngineError, MissingExtra
from .message import Message
from .retention import oldest_whole

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger("tidings.push")

Endpoint = Callable[["Request"], Coroutine[Any, Any, "Response"]]
Visible = Callable[[Message[Any], "Request"], bool]
Decode = Callable[[Entry], Message[Any]]

KEPT: Final = 256  # entries in memory, for all browsers together
PAGE: Final = 100  # entries read from the log at once
HEARTBEAT: Final = 15  # seconds
SEND_TIMEOUT: Final = 20.0  # seconds a frozen browser may block a write
RETRY: Final = (500, 1500)  # milliseconds a browser waits before it reconnects: spread, so that not all come at once
_LOG_KEY: Final = "push-log"


class Reader:
    """One browser's place in the log. Everything behind `position` is still to come."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._news = asyncio.Event()

    def wake(self) -> None:
        self._news.set()

    async def news(self) -> None:
        """Wait until the hub has read something since the last call."""
        await self._news.wait()
        self._news.clear()


class Hub:
    """Reads some subjects of the log once, for all browsers of this process."""

    def __init__(self, engine: Engine, filters: Sequence[str]) -> None:
        self._engine = engine
        self._filters = list(filters)
        # Weak: a stream that is given up before its first byte is never told that it has ended.
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._kept: deque[Entry] = deque(maxlen=KEPT)
        self._floor = 0
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self.log_id = ""
        """Names this log: positions of another one (the data were deleted, the engine exchanged) mean nothing here."""

    async def join(self) -> tuple[Reader, int]:
        """A reader at the log's end, and the oldest position from which everything behind is still stored.

        Raises `EngineUnavailable` when the engine cannot be asked.
        """
        await self._start()
        stats = await self._engine.stats()
        reader = Reader(stats.last)
        self._readers.add(reader)
        return reader, max(stats.first, await oldest_whole(self._engine, self._filters)) - 1

    async def entries(self, reader: Reader) -> AsyncGenerator[Entry, None]:
        """Everything behind the reader's position, then whatever comes. Ends when the engine does not answer."""
        while True:
            try:
                found = await self._behind(reader.position)
            except EngineError as error:
                log.warning("a browser is sent away to reconnect: %s", error)
                return
            for entry in found:
                reader.position = entry.position
                yield entry
            if not found:
                if self._task is None or self._task.done():
                    return
                await reader.news()

    async def close(self) -> None:
        """End the reading and all streams; their browsers reconnect, to another process if there is one."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _start(self) -> None:
        async with self._starting:
            if self._task is None or self._task.done():
                self.log_id = await log_id(self._engine)
                self._floor = (await self._engine.stats()).last
                self._kept.clear()
                self._task = asyncio.create_task(self._read_all(), name="tidings-push")
                self._task.add_done_callback(self._ended)

    async def _read_all(self) -> None:
        position, pause = self._floor, 0.1
        while True:
            try:
                entries = await self._engine.read(self._filters, position, PAGE, wait=30.0)
            except Closed:
                return
            except EngineError as error:
                log.warning("push waits for the engine: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
                continue
            pause = 0.1
            if entries:
                for entry in entries:
                    self._keep(entry)
                position = entries[-1].position
                self._wake_all()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("push itself failed; it begins again with the next browser", exc_info=error)
        self._wake_all()

    def _keep(self, entry: Entry) -> None:
        if len(self._kept) == KEPT:
            self._floor = self._kept[0].position
        self._kept.append(entry)

    def _wake_all(self) -> None:
        for reader in self._readers:
            reader.wake()

    async def _behind(self, position: int) -> Sequence[Entry]:
        """Some entries behind a position: from memory if all of them are there, else a page of the log."""
        if position < self._floor:
            if page := await self._engine.read(self._filters, position, PAGE):
                return page
            position = self._floor
        found: list[Entry] = []
        for entry in reversed(self._kept):
            if entry.position <= position:
                break
            found.append(entry)
        return found[::-1]


async def log_id(engine: Engine) -> str:
    """The log's name, given once by whoever pushes from it first and kept beside it."""
    while True:
        record = await engine.recall(_LOG_KEY)
        if record is not None:
            return record.value.decode()
        try:
            await engine.register(_LOG_KEY, secrets.token_hex(4).encode(), 0)
        except Conflict:
            await asyncio.sleep(0)


class Push:
    """The endpoint's work: one stream of server-sent events a browser."""

    def __init__(self, hub: Callable[[], Coroutine[Any, Any, Hub]], decode: Decode, visible: Visible | None) -> None:
        self._hub = hub
        self._decode = decode
        self._visible = visible

    def endpoint(self) -> Endpoint:
        """The function a Starlette or FastAPI route takes. It answers 503 while the engine is away."""
        try:
            from sse_starlette import EventSourceResponse
            from starlette.responses import JSONResponse
        except ImportError as error:
            raise MissingExtra("Push", "web") from error

        async def push(request: Request) -> Response:
            try:
                hub = await self._hub()
                reader, oldest = await hub.join()
            except EngineError as error:
                log.warning("no stream for a browser: %s", error)
                away = {"error": "live updates are not available at the moment, try again soon"}
                return JSONResponse(away, 503, {"Retry-After": "2", "Cache-Control": "no-store"})
            return EventSourceResponse(
                self._events(hub, reader, oldest, request),
                ping=HEARTBEAT,
                send_timeout=SEND_TIMEOUT,
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )

        return push

    async def _events(self, hub: Hub, reader: Reader, oldest: int, request: Request) -> AsyncIterator[dict[str, Any]]:
        given = last_event_id(request)
        end = event_id(hub, reader.position)
        if given is None:
            yield {**framed("ready", end, {"resumed": False}), "retry": random.randint(*RETRY)}  # noqa: S311
        else:
            last = position_of(given, hub, oldest, reader.position)
            if last is not None:
                reader.position = last
            # An id that cannot be resumed is replaced by the next event's, so that a cut in between asks again.
            first = {"resumed": last is not None}
            yield {**framed("ready", None if last is None else given, first), "retry": random.randint(*RETRY)}  # noqa: S311
            if last is None:
                yield framed("reset", end, {"reason": "what you missed is no longer stored"})
        async for entry in hub.entries(reader):
            if (data := self._data(entry, request)) is not None:
                yield framed(entry.subject, event_id(hub, entry.position), data)

    def _data(self, entry: Entry, request: Request) -> dict[str, Any] | None:
        """What a browser is told of an entry; None if this one must not or cannot be told."""
        try:
            message = self._decode(entry)
            if self._visible is not None and not self._visible(message, request):
                return None
        except DecodeError as error:
            log.warning("not pushed: position %d on %s: %s", entry.position, entry.subject, error)
            return None
        except Exception:
            log.exception("not pushed: position %d on %s: visible() failed", entry.position, entry.subject)
            return None
        return {
            "id": message.id,
            "subject": message.subject,
            "time": message.time.isoformat(timespec="milliseconds"),
            "correlation": message.correlation_id,
            "causation": message.causation_id,
            "data": json.loads(entry.body),
        }


def framed(event: str, id: str | None, data: dict[str, Any]) -> dict[str, Any]:
    """One event as sse-starlette takes it."""
    return {"event": event, "data": json.dumps(data), **({} if id is None else {"id": id})}


def event_id(hub: Hub, position: int) -> str:
    return f"{hub.log_id}-{position}"


def last_event_id(request: Request) -> str | None:
    """Where a browser wants to resume; as a parameter for those that open the stream anew and cannot set headers."""
    return request.headers.get("last-event-id") or request.query_params.get("last-event-id") or None


def position_of(given: str, hub: Hub, oldest: int, newest: int) -> int | None:
    """The position an id stands for, if everything behind it is still stored."""
    log_id, _, number = given.partition("-")
    if log_id != hub.log_id or not (number.isascii() and number.isdigit() and len(number) < 19):
        return None
    position = int(number)
    return position if oldest <= position <= newest else None
