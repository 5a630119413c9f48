"""The page and the API: they publish what is wanted, read the list, and push what has happened."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import asdict
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidings import DeadLettered, EngineError, InvalidMessage, StillWorking, Unconfirmed

from .database import Item, async_session
from .events import LONGEST, ItemMutated, ItemSaved, NewItem
from .handlers import bus
from .pending import pending_items, why

log = logging.getLogger("todo.web")

HERE = Path(__file__).parent
LARGEST_BODY = 16 * 1024  # bytes: 256 characters, each two times \uXXXX, and room for fields we do not know
LONGEST_WAIT = 10  # seconds
MOST_FORGOTTEN = 4 * 1024 * 1024  # bytes, see AtOnce

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}


class Form(msgspec.Struct):
    item: str


async def page(request: Request) -> Response:
    return FileResponse(HERE / "page.html", media_type="text/html")


async def add_item(request: Request) -> Response:
    """202: stored, and sure to be handled. The `id` answered comes back as the push event's `correlation`, and at
    `Location` stands what has become of it. With `Prefer: wait=2` it waits so many seconds, and 200 is the saved item.

    A client that got no answer repeats its request with the same `Idempotency-Key`: the item is added once.
    """
    new, patience = NewItem(item=item_in(await body_of(request))), wait_preferred(request)
    receipt = await bus.publish(new, id=request.headers.get("idempotency-key"))
    about = {"id": receipt.id, "position": receipt.position}
    with suppress(StillWorking, DeadLettered):
        if patience:
            saved = await receipt.wait(ItemSaved, timeout=patience)
            return JSONResponse({**about, "item": asdict(saved)}, 200, {"Preference-Applied": f"wait={patience}"})
    return JSONResponse(about, 202, {"Location": f"/todo/requests/{quote(receipt.id)}?position={receipt.position}"})


async def outcome(request: Request) -> Response:
    """What has become of a new item: `working`, `retrying`, `dead` with the reason, or `done` with the item."""
    receipt = bus.receipt(request.path_params["id"], position=number(request, "position") or 0)
    try:
        progress = await receipt.progress(ItemSaved)
    except LookupError as none:
        raise HTTPException(404, str(none)) from none
    answer: dict[str, Any] = {"id": receipt.id, "state": progress.state}
    if progress.state == "done":
        try:
            answer["item"] = asdict(await receipt.wait(ItemSaved, timeout=LONGEST_WAIT))
        except StillWorking:  # committed, and on its way
            answer["state"] = "working"
    if progress.failures:
        answer |= why(progress.failures[0])
    return JSONResponse(answer)


async def list_pending(request: Request) -> Response:
    """Items that somebody wants and that are not saved: on their way, or given up on, with the reason."""
    return JSONResponse(await pending_items(await bus.connect()))


async def list_items(request: Request) -> Response:
    """All items, newest first; with `?limit=` a page of them, and with `?before=` those that are older than an id."""
    query = select(Item).order_by(Item.id.desc())
    if (limit := number(request, "limit")) is not None:
        query = query.limit(limit)
    if (before := number(request, "before")) is not None:
        query = query.where(Item.id < before)
    async with async_session() as db:
        rows = await db.scalars(query)
        items = [{"id": row.id, "item": row.item, "date_added": row.date_added.isoformat()} for row in rows]
    return JSONResponse(items)


async def ready(request: Request) -> Response:
    """200 when items can be added and listed; for whoever starts or watches this process."""
    await bus.engine.stats()
    async with async_session() as db:
        await db.execute(select(1))
    return JSONResponse({"ready": True})


async def body_of(request: Request) -> bytes:
    """The body of a JSON request. Other types are refused, so that no form on a foreign site can post here."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"the body has more than {LARGEST_BODY:,} bytes")
    return body


def item_in(body: bytes) -> str:
    """The text of the item in a request's body, trimmed; unknown fields are ignored."""
    try:
        item = msgspec.convert(json.loads(body.decode(), parse_constant=refuse_constant), Form).item.strip()
    except msgspec.ValidationError as error:
        raise HTTPException(400, f'send {{"item": "text"}}: {error}') from error
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not any(character.isprintable() and not character.isspace() for character in item):
        raise HTTPException(400, "the item is empty: it shows no character")
    if len(item) > LONGEST:
        raise HTTPException(400, f"the item has {len(item)} characters, the most are {LONGEST}")
    return item


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def wait_preferred(request: Request) -> int:
    """The seconds in `Prefer: wait=2` (RFC 7240), so many at most; 0 without."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})(?![^\s,;])", request.headers.get("prefer", ""), re.IGNORECASE)
    return min(int(found[1]), LONGEST_WAIT) if found else 0


def number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise HTTPException(400, f"{name}={text[:20]}: write a whole number from 1 on")
    return int(text)


def error(status: int, text: str, headers: dict[str, str] | None = None, **more: str) -> Response:
    return JSONResponse({"error": text, **more}, status, headers)


async def refused(request: Request, cause: Exception) -> Response:
    if isinstance(cause, HTTPException):
        if cause.status_code == 413:
            return AtOnce({"error": cause.detail}, 413, {"Connection": "close"})
        return error(cause.status_code, cause.detail, dict(cause.headers or {}))
    return error(400, str(cause))


async def away(request: Request, cause: Exception) -> Response:
    """Try again: the engine or the database is not there at the moment."""
    log.warning("%s %s: %s", request.method, request.url.path, str(cause).partition("\n")[0])
    again = {"Retry-After": "2"}
    if isinstance(cause, Unconfirmed) and cause.receipt is not None:
        text = "unknown whether it is stored: repeat it with this id as Idempotency-Key, it will be stored once"
        return error(503, text, again, id=cause.receipt.id)
    what = "the message engine" if isinstance(cause, EngineError) else "the database"
    return error(503, f"{what} is not available at the moment: try again soon", again)


class AtOnce(JSONResponse):
    """An answer to a request that is still arriving. What comes behind is read and forgotten for a moment, because
    clients that cannot send any more often do not look for an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        left = MOST_FORGOTTEN
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                while left > 0 and (message := await receive()).get("more_body"):
                    left -= len(message["body"])
        await send({"type": "http.response.body", "body": b""})


class Guard:
    """Every answer carries `HEADERS`, unless it says otherwise itself. Requests for hosts that are not ours are
    refused: a page elsewhere whose name is made to point here (DNS rebinding) reads nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.hosts = {"localhost", "127.0.0.1", "[::1]", *os.environ.get("TODO_HOSTS", "").replace(",", " ").split()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self.knows(Headers(scope=scope).get("host", "")):
            text = "this host is not known here: name it in TODO_HOSTS (* for all), separated by commas"
            await error(421, text)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                own = ((name.lower().encode(), value.encode()) for name, value in HEADERS.items())
                message["headers"] = [*message["headers"], *(header for header in own if header[0] not in given)]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)

    def knows(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower()
        return "*" in self.hosts or name in self.hosts


def create_app(*, workers: bool = False) -> Starlette:
    """The application; with `workers` its handlers run in the same process."""
    return Starlette(
        routes=[
            Route("/", page),
            Route("/todo", list_items),
            Route("/todo", add_item, methods=["POST"]),
            Route("/todo/pending", list_pending),
            Route("/todo/requests/{id}", outcome),
            Mount("/push", bus.push(NewItem, ItemSaved, ItemMutated)),
            Route("/ready", ready),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(Guard)],
        exception_handlers={
            HTTPException: refused,
            InvalidMessage: refused,
            EngineError: away,
            SQLAlchemyError: away,
        },
        lifespan=bus.lifespan(workers=workers),
    )


app = create_app()
