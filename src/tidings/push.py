"""Push: completion events to browsers, by server-sent events that resume.

The id of each event is its position in the log, so a browser that reconnects (with the `Last-Event-ID` it sends by
itself) is given what it missed, from any web process. One process reads the log once, however many browsers it has;
each browser has a bounded queue, and one that cannot keep up is told to start over instead of filling memory.

Format: `event:` is the subject, `id:` the position, `data:` one line of JSON
`{"id", "subject", "time", "correlation", "causation", "data"}`. The event `reset` says that something may have been
missed: reload what is shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from .engine import Engine, Entry
from .errors import Closed, DecodeError, EngineError, MissingExtra
from .message import Message

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger("tidings.push")

Endpoint = Callable[["Request"], Coroutine[Any, Any, "Response"]]
Visible = Callable[[Message[Any], "Request"], bool]
Decode = Callable[[Entry], Message[Any]]

QUEUE: Final = 256  # events one browser may lag behind
HEARTBEAT: Final = 15  # seconds
SEND_TIMEOUT: Final = 20.0  # seconds a frozen browser may block a write
RETRY: Final = 1000  # milliseconds a browser waits before it reconnects


class Client:
    """One connected browser."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._queue: asyncio.Queue[Entry] = asyncio.Queue(QUEUE)
        self.lagged = False

    def offer(self, entry: Entry) -> None:
        try:
            self._queue.put_nowait(entry)
        except asyncio.QueueFull:
            self.lagged = True

    async def next(self) -> Entry | None:
        """The next entry, or None when some did not fit any more."""
        if self._queue.empty() and self.lagged:
            self.lagged = False
            return None
        return await self._queue.get()


class Hub:
    """Reads the log once for all browsers of this process."""

    def __init__(self, engine: Engine, filters: Sequence[str]) -> None:
        self._engine = engine
        self._filters = list(filters)
        self._clients: set[Client] = set()
        self._position = 0
        self._task: asyncio.Task[None] | None = None

    async def join(self) -> Client:
        """A client that gets everything behind its `position`."""
        if self._task is None:
            self._position = (await self._engine.stats()).last
            # A second browser may have come while we asked.
            self._task = self._task or asyncio.create_task(self._read_all(), name="tidings-push")
        client = Client(self._position)
        self._clients.add(client)
        return client

    def leave(self, client: Client) -> None:
        self._clients.discard(client)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _read_all(self) -> None:
        pause = 0.1
        while True:
            try:
                entries = await self._engine.read(self._filters, self._position, 100, wait=30.0)
                pause = 0.1
            except Closed:
                return
            except EngineError as error:
                log.warning("push waits for the engine: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
                continue
            for entry in entries:
                self._position = entry.position
                for client in self._clients:
                    client.offer(entry)

    async def missed(self, after: int, upto: int) -> AsyncIterator[Entry]:
        """What lies between a browser's last event and where its queue began."""
        while after < upto:
            page = await self._engine.read(self._filters, after, 100)
            for entry in page:
                if entry.position > upto:
                    return
                yield entry
            if not page:
                return
            after = page[-1].position

    async def resumable(self, after: int) -> bool:
        """Whether everything behind the position is still stored (and the position is one of this log)."""
        stats = await self._engine.stats()
        return stats.first - 1 <= after <= stats.last


class Push:
    """The endpoint's work: one stream of server-sent events a browser."""

    def __init__(self, hub: Callable[[], Coroutine[Any, Any, Hub]], decode: Decode, visible: Visible | None) -> None:
        self._hub = hub
        self._decode = decode
        self._visible = visible

    def endpoint(self) -> Endpoint:
        """The function a Starlette or FastAPI route takes."""
        try:
            from sse_starlette import EventSourceResponse
        except ImportError as error:
            raise MissingExtra("Push", "web") from error

        async def push(request: Request) -> Response:
            hub = await self._hub()
            return EventSourceResponse(
                self._events(hub, request),
                ping=HEARTBEAT,
                send_timeout=SEND_TIMEOUT,
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )

        return push

    async def _events(self, hub: Hub, request: Request) -> AsyncIterator[dict[str, Any]]:
        client = await hub.join()
        try:
            last = last_event_id(request)
            # Headers leave with the first bytes: an event says at once that the stream is there, and where it stands.
            yield {"event": "ready", "id": str(client.position if last is None else last), "data": "{}", "retry": RETRY}
            if last is not None:
                if last < 0 or not await hub.resumable(last):
                    yield reset(client.position, "what you missed is no longer stored")
                else:
                    async for entry in hub.missed(last, client.position):
                        if event := self._event(entry, request):
                            yield event
            while True:
                live = await client.next()
                if live is None:
                    yield reset(client.position, "too many events at once for this connection")
                elif live.position > client.position:
                    client.position = live.position
                    if event := self._event(live, request):
                        yield event
        finally:
            hub.leave(client)

    def _event(self, entry: Entry, request: Request) -> dict[str, Any] | None:
        try:
            message = self._decode(entry)
        except DecodeError as error:
            log.warning("not pushed: position %d on %s: %s", entry.position, entry.subject, error)
            return None
        if self._visible is not None and not self._visible(message, request):
            return None
        data = {
            "id": message.id,
            "subject": message.subject,
            "time": message.time.isoformat(timespec="milliseconds"),
            "correlation": message.correlation_id,
            "causation": message.causation_id,
            "data": json.loads(entry.body),
        }
        return {"event": message.subject, "id": str(entry.position), "data": json.dumps(data)}


def last_event_id(request: Request) -> int | None:
    """The position a browser resumes from; None for a first visit, -1 for one that cannot be ours."""
    given = request.headers.get("last-event-id") or request.query_params.get("last-event-id")
    if not given:
        return None
    return int(given) if given.isascii() and given.isdigit() and len(given) < 19 else -1


def reset(position: int, why: str) -> dict[str, Any]:
    return {"event": "reset", "id": str(position), "data": json.dumps({"reason": why})}
