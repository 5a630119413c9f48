"""The endpoint: an ASGI application for Starlette, FastAPI, Litestar, Django and whatever else speaks ASGI."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from ..engine import Entry, Lagged
from ..errors import ConfigError, DecodeError, EngineError, MissingExtra
from ..message import Message
from ..watching.failures import Failed
from ..watching.hub import Hub, Reader
from ..watching.progress import find, leading, look
from .crowd import Crowd, Full
from .frames import event_frame, event_id, frame, is_number, outcome_frame, position_of
from .wires import Wire, Wires

if TYPE_CHECKING:
    import anyio
    from sse_starlette import ServerSentEvent
    from starlette.requests import Request
    from starlette.responses import Response

    from ..running import Running

log = logging.getLogger("tidings.push")

Visible = Callable[[Message[Any], "Request"], bool | Awaitable[bool]]
User = Callable[["Request"], str | None]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEARTBEAT: Final = 6  # seconds; some of them tell whether a browser seems to read
PATIENCE: Final = 15.0  # seconds a browser may take nothing while there is something to take
GRACE: Final = 1.0  # seconds a stream may take to end when the server stops
LIFETIME: Final = (240.0, 300.0)  # seconds after which a stream ends, for the browser to come and be judged again
RETRY: Final = (500, 1500)  # milliseconds a browser waits before it reconnects: spread, so that not all come at once
MOST: Final = 2000  # streams of one process
PER_USER: Final = 10
_MEMORY: Final = 512  # messages kept decoded, for all browsers together
_ASSETS: Final = Path(__file__).parent / "static"
_NO_STORE: Final = {"Cache-Control": "no-store"}
_STREAM: Final = {**_NO_STORE, "X-Accel-Buffering": "no"}


class Push:
    """Pushes some events to browsers; see the package's text. Made by `Bus.push`."""

    def __init__(
        self,
        running: Callable[[], Coroutine[Any, Any, Running]],
        filters: tuple[str, ...],
        *,
        visible: Visible | None = None,
        user: User | None = None,
        most: int = MOST,
        per_user: int = PER_USER,
    ) -> None:
        try:
            import sse_starlette  # noqa: F401
        except ImportError as error:
            raise MissingExtra("Push", "web") from error
        if inspect.iscoroutinefunction(user):
            raise ConfigError(
                "bus.push(user=…) takes a plain function: what has to be awaited belongs into a middleware; read it "
                "from request.state"
            )
        self._connect = running
        self._filters = filters
        self._visible = visible
        self._user = user
        self._crowd = Crowd(most, per_user)
        self._wires = Wires()
        self._decoded: dict[str, tuple[Message[Any], bytes]] = {}
        self._untold: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        from starlette.requests import Request

        name = leaf(scope)
        answer: Callable[[Request, Scope, Receive, Send], Awaitable[None]] = self._stream
        if name.endswith((".js", ".ts")):
            answer = self._asset
        elif name == "outcome":
            answer = self._outcome
        elif scope["method"] == "HEAD":
            answer = self._head
        if scope["method"] not in ("GET", "HEAD"):
            answer = self._refuse_method
        await answer(Request(scope, receive), scope, receive, send)

    async def _refuse_method(self, _: Request, scope: Scope, receive: Receive, send: Send) -> None:
        await said(405, f"{scope['method']} is not for this address: GET it")(scope, receive, send)

    async def _head(self, _: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """What a stream would begin with; it is none, and takes nobody's place."""
        from starlette.responses import Response

        response = Response(headers=_STREAM, media_type="text/event-stream")
        del response.headers["content-length"]  # of a stream nobody knows it
        await response(scope, receive, send)

    async def _asset(self, _: Request, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import FileResponse

        path = _ASSETS / leaf(scope)
        if path.name not in ("tidings.js", "tidings.d.ts"):
            response: Response = said(404, "there is no such file")
        else:
            kind = "text/javascript" if path.suffix == ".js" else "text/plain"
            response = FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})
        await response(scope, receive, send)

    async def _stream(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        from sse_starlette import EventSourceResponse

        wire = self._wires.of(scope)
        try:
            with self._crowd.place(self._user(request) if self._user else None):
                hub = (await self._connect()).hub(self._filters)
                reader, oldest = await hub.join()
                async with aclosing(self._frames(hub, reader, oldest, request, wire)) as frames:
                    response = EventSourceResponse(
                        frames,
                        ping=HEARTBEAT,
                        ping_message_factory=cast("Callable[[], ServerSentEvent]", partial(heartbeat, wire, reader)),
                        send_timeout=PATIENCE,
                        shutdown_event=cast("anyio.Event", _Leaving(reader)),
                        shutdown_grace_period=GRACE,
                        headers=_STREAM,
                    )
                    with wire.impatient(PATIENCE):
                        await response(scope, receive, send)
        except Full:
            text = "too many live streams at the moment: close a window, or try again later"
            await said(503, text, {"Retry-After": "30"})(scope, receive, send)
        except EngineError as error:
            log.warning("no stream for a browser: %s", error)
            await said(503, "live updates are not available at the moment, try again soon", {"Retry-After": "2"})(
                scope, receive, send
            )
        except TimeoutError:
            log.info("a browser that took nothing for %g s was disconnected", PATIENCE)
            wire.cut()  # closed in good order it would stay until its last bytes are taken

    async def _frames(
        self, hub: Hub, reader: Reader, oldest: int, request: Request, wire: Wire
    ) -> AsyncGenerator[bytes, None]:
        given = last_event_id(request)
        end, retry = event_id(hub, reader.position), random.randint(*RETRY)  # noqa: S311
        if given is None:
            yield frame("ready", {"resumed": False}, id=end, retry=retry)
        elif (last := position_of(given, hub, oldest, reader.position)) is not None:
            reader.position = last
            yield frame("ready", {"resumed": True}, id=given, retry=retry)
        else:
            # An id that cannot be resumed is replaced by the next event's, so that a cut in between asks again.
            yield frame("ready", {"resumed": False}, retry=retry)
            yield frame("reset", {"reason": "what you missed is no longer stored"}, id=end)
        over = asyncio.get_running_loop().time() + random.uniform(*LIFETIME)  # noqa: S311
        timer = asyncio.get_running_loop().call_at(over, reader.end)
        try:
            async for news in hub.follow(reader):
                if (told := await self._told(hub, news, request)) is not None:
                    wire.look()
                    yield told
        finally:
            timer.cancel()

    async def _told(self, hub: Hub, news: Entry | Failed | Lagged, request: Request) -> bytes | None:
        if isinstance(news, Entry):
            return await self._event(hub, news, request)
        if isinstance(news, Failed):
            return await self._failure(hub, news, request)
        return frame("reset", {"reason": "failures may have been missed"})

    async def _event(self, hub: Hub, entry: Entry, request: Request) -> bytes | None:
        """What a browser is told of an entry; None if this one must not or cannot be told."""
        known = await self._known(hub, entry)
        if known is None or not await self._may_see(known[0], request):
            return None
        return known[1]

    async def _failure(self, hub: Hub, failed: Failed, request: Request) -> bytes | None:
        if self._visible is not None:
            known = self._decoded.get(event_id(hub, failed.position))
            if known is None:
                engine = (await self._connect()).engine
                page = await engine.read([failed.subject], failed.position - 1, 1)
                same = page and page[0].position == failed.position
                known = await self._known(hub, page[0]) if same else None
            if known is None or not await self._may_see(known[0], request):
                return None
        return outcome_frame(failed)

    async def _known(self, hub: Hub, entry: Entry) -> tuple[Message[Any], bytes] | None:
        """The message and its frame, made once for all browsers; None for what is no such event."""
        place = event_id(hub, entry.position)
        known = self._decoded.get(place)
        if known is None:
            try:
                message = (await self._connect()).decode(entry)
            except DecodeError as error:
                if len(self._untold) < _MEMORY and entry.subject not in self._untold:
                    self._untold.add(entry.subject)
                    log.warning("not pushed: position %d on %s: %s", entry.position, entry.subject, error)
                return None
            if len(self._decoded) >= _MEMORY:
                self._decoded.clear()
            known = self._decoded[place] = message, event_frame(hub, entry, message)
        return known

    async def _may_see(self, message: Message[Any], request: Request) -> bool:
        if self._visible is None:
            return True
        try:
            verdict = self._visible(message, request)
            return bool(await verdict if inspect.isawaitable(verdict) else verdict)
        except Exception:
            log.exception("not pushed: position %d on %s: visible() failed", message.position, message.subject)
            return False

    async def _outcome(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._progress(request)
        except EngineError as error:
            log.warning("no outcome for a browser: %s", error)
            response = said(503, "outcomes are not available at the moment, try again soon", {"Retry-After": "2"})
        await response(scope, receive, send)

    async def _progress(self, request: Request) -> Response:
        """What has become of a message, as far as this browser may know: one read by place, and its groups' states."""
        from starlette.responses import JSONResponse

        id, position = request.query_params.get("id", ""), request.query_params.get("position", "")
        if not id or not is_number(position) or not int(position):
            return said(400, "ask with ?id=…&position=…, as the publish answered them")
        running = await self._connect()
        hub = running.hub(self._filters)
        root = await find(running.engine, id, running.namespace, int(position))
        if root is None or not await self._leads_here(running, root) or await self._hidden(hub, root, request):
            return said(404, "no such message, or it is not yours")
        progress = await look(running.chains, root, self._filters)
        failure = progress.failures[0] if progress.failures else None
        answer = {"id": id, "correlation": id, "position": int(position), "state": progress.state}
        if failure is not None:
            answer |= {name: getattr(failure, name) for name in ("group", "attempts", "reason", "error", "text")}
        return JSONResponse(answer, headers=_NO_STORE)

    async def _leads_here(self, running: Running, root: Entry) -> bool:
        """Whether a pushed event may come of the message: of others nothing is told."""
        from ..claims import load

        ledger, _ = await load(running.engine)
        return any(
            claim.wants(root.subject, root.position)
            for claimant in leading(ledger, self._filters).values()
            for claim in claimant.claims
        )

    async def _hidden(self, hub: Hub, root: Entry, request: Request) -> bool:
        return self._visible is not None and await self._event(hub, root, request) is None


class _Leaving:
    """What is set when the server stops: the stream then ends as if it was complete, and no server complains."""

    def __init__(self, reader: Reader) -> None:
        self.set = reader.end


def heartbeat(wire: Wire, reader: Reader) -> bytes:
    """A comment, as long as it takes to tell whether the browser seems to read. The stream of one that does not ends;
    one that reads after all comes again at once, and misses nothing."""
    length = wire.heartbeat()
    if length is None:
        log.info("a browser that seems to read nothing was sent away")
        reader.end()
    return b":%b\n\n" % ((length or 0) * b".")


def leaf(scope: Scope) -> str:
    """The last part of the path; some frameworks put a slash behind it."""
    return str(scope["path"]).rstrip("/").rpartition("/")[2]


def said(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An error as JSON."""
    from starlette.responses import JSONResponse

    return JSONResponse({"error": text}, status, {**_NO_STORE, **(headers or {})})


def last_event_id(request: Request) -> str | None:
    """Where a browser wants to resume; as a parameter for those that open the stream anew and cannot set headers."""
    return request.headers.get("last-event-id") or request.query_params.get("last-event-id") or None
