"""The push endpoint as an application: who sees what, how many, for how long, and what goes over the wire."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount, Route

import tidings
from tidings import push
from tidings.engine import Entry
from tidings.message import Message
from tidings.push import app as endpoint
from tidings.push.crowd import Crowd, Full
from tidings.push.frames import event_frame, frame, position_of
from tidings.testing import TestBus
from tidings.watching.hub import Hub
from todo_app import Event, Stream, eventually, served


class Wanted(tidings.Event, subject="events.note.wanted"):
    owner: str


class Note(tidings.Event, subject="events.note.kept"):
    owner: str


def of_user(message: Message[Any], request: Request) -> bool:
    return bool(message.data.owner == request.query_params["user"])


def notes(**options: Any) -> tuple[tidings.Bus, push.Push]:
    """An application that keeps notes, all but those of `mallory`."""
    bus = tidings.Bus("notes", url="memory:")

    @bus.on(Wanted, group="keep", retry=tidings.NEVER)
    async def keep(wanted: Wanted) -> Note:
        if wanted.owner.endswith("!"):
            raise tidings.Reject(f"no notes for {wanted.owner}")
        return Note(owner=wanted.owner)

    return bus, bus.push(Note, **options)


@asynccontextmanager
async def web(**options: Any) -> AsyncIterator[tuple[tidings.Bus, httpx.AsyncClient]]:
    bus, application = notes(**options)
    async with (
        TestBus(bus),
        served(Starlette(routes=[Mount("/push", application)])) as url,
        httpx.AsyncClient(base_url=url, timeout=10) as client,
    ):
        yield bus, client


@asynccontextmanager
async def stream(client: httpx.AsyncClient, user: str, last: str | None = None) -> AsyncIterator[Stream]:
    headers = {} if last is None else {"Last-Event-ID": last}
    async with client.stream("GET", "/push/", params={"user": user}, headers=headers) as response:
        assert response.status_code == 200
        yield Stream(response)


async def owners(stream: Stream, count: int) -> list[str]:
    return [(await stream.next()).data["data"]["owner"] for _ in range(count)]


async def test_anothers_place_shows_nothing_of_his() -> None:
    """A user who resumes with the place of somebody else gets what is his own behind it, and nothing more."""
    async with web(visible=of_user) as (bus, client):
        async with stream(client, "ada") as ada:
            place = (await ada.next()).id
            for owner in ("ada", "bob", "ada", "eve", "bob"):
                await bus.publish(Wanted(owner=owner))
            assert await owners(ada, 2) == ["ada", "ada"]
        await bus.publish(Wanted(owner="end"))
        for user, seen in (("bob", ["bob", "bob"]), ("eve", ["eve"]), ("end", ["end"])):
            async with stream(client, user, place) as other:
                assert (await other.next()).data == {"resumed": True}
                assert await owners(other, len(seen)) == seen


async def test_failures_are_told_to_those_who_may_see_the_message() -> None:
    """`visible` is asked about the message that failed; the text of a `Reject` is told, with the reason."""
    async with web(visible=of_user) as (bus, client), stream(client, "bob!") as bob, stream(client, "ada") as ada:
        await bob.next()
        await ada.next()
        wanted = await bus.publish(Wanted(owner="bob!"))
        await bus.publish(Wanted(owner="ada"))
        outcome = await bob.next()
        assert (outcome.name, outcome.id) == ("outcome", None)
        assert (outcome.data["state"], outcome.data["reason"]) == ("dead", "rejected")
        assert (outcome.data["text"], outcome.data["correlation"]) == ("no notes for bob!", wanted.id)
        assert (await ada.next()).name == "events.note.kept"
        question = {"id": wanted.id, "position": str(wanted.position)}
        told = await client.get("/push/outcome", params={**question, "user": "bob!"})
        assert (told.status_code, told.json()["text"]) == (200, "no notes for bob!")
        assert (await client.get("/push/outcome", params={**question, "user": "ada"})).status_code == 404


async def test_visible_may_be_async() -> None:
    """A decision that needs the database is awaited."""

    async def later(message: Message[Any], request: Request) -> bool:
        await asyncio.sleep(0)
        return of_user(message, request)

    async with web(visible=later) as (bus, client), stream(client, "ada") as ada:
        await ada.next()
        for owner in ("bob", "ada"):
            await bus.publish(Wanted(owner=owner))
        assert await owners(ada, 1) == ["ada"]


def test_who_a_user_is_cannot_be_awaited() -> None:
    """Each call would be a user of its own, and no limit for any of them."""

    async def user(request: Request) -> str:
        return "ann"

    given: Any = user
    with pytest.raises(tidings.ConfigError, match="plain function"):
        tidings.Bus("todo").push("events.>", user=given)


async def test_a_user_and_all_together_have_so_many_streams() -> None:
    """Beyond the limit of a user or of the process the answer is 503 with `Retry-After`; a closed one makes room."""
    async with web(user=lambda request: request.query_params["user"], per_user=2, most=3) as (_, client):
        async with stream(client, "ada"), stream(client, "ada"):
            refused = await client.get("/push/", params={"user": "ada"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
            async with stream(client, "bob"):
                assert (await client.get("/push/", params={"user": "eve"})).status_code == 503

        async def room() -> bool:
            async with client.stream("GET", "/push/", params={"user": "ada"}) as response:
                return response.status_code == 200

        await eventually(room)


async def test_a_stream_ends_by_itself_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its lifetime a stream ends, so that authorisation is checked again; with its last id nothing is missed."""
    monkeypatch.setattr(endpoint, "LIFETIME", (0.3, 0.3))
    async with web() as (bus, client):
        async with stream(client, "ada") as first:
            place = (await first.next()).id
            with pytest.raises(StopAsyncIteration):
                await first.next()
        await bus.publish(Wanted(owner="ada"))
        async with stream(client, "ada", place) as second:
            assert (await second.next()).data == {"resumed": True}
            assert await owners(second, 1) == ["ada"]


async def test_the_module_is_served_beside_the_stream() -> None:
    """`tidings.js` and its types come from the endpoint, with the type a browser insists on; nothing else does."""
    async with web() as (_, client):
        script = await client.get("/push/tidings.js")
        assert (script.status_code, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        assert "export function connect" in script.text
        assert "export function connect" in (await client.get("/push/tidings.d.ts")).text
        for path in ("/push/app.js", "/push/x/..%2f..%2fapp.js", "/push/%2e%2e/crowd.js"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/push/")).status_code == 405


def test_the_module_is_small_and_needs_nothing() -> None:
    """`tidings.js` has less than 4 kB and imports nothing."""
    script = (Path(push.__file__).parent / "static" / "tidings.js").read_text()
    assert len(script.encode()) < 4000
    assert not re.search(r"^import|import\(", script, re.MULTILINE)


async def test_a_route_serves_the_stream_too() -> None:
    """As `Route("/push", …)` or `add_route` the stream stands at that very address."""
    bus, application = notes()
    app = Starlette(routes=[Route("/push", application)])
    async with (
        TestBus(bus),
        served(app) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("GET", "/push") as response,
    ):
        assert (await Stream(response).next()).name == "ready"


async def test_asking_for_the_head_takes_no_place() -> None:
    """HEAD is answered with what a stream begins with, again and again, beside the only stream that may be open."""
    async with web(most=1) as (_, client), stream(client, "ada") as ada:
        await ada.next()
        for _ in range(3):
            answer = await client.head("/push/")
            assert (answer.status_code, answer.content) == (200, b"")
            assert answer.headers["content-type"] == ada.response.headers["content-type"]
            assert "content-length" not in answer.headers
        assert (await client.get("/push/")).status_code == 503


def test_places_in_the_crowd_are_given_back() -> None:
    """Whatever happens inside, a place is free again afterwards, and unknown users share only the limit of all."""
    crowd = Crowd(most=3, per_user=1)
    with crowd.place(None), crowd.place(None), pytest.raises(ZeroDivisionError), crowd.place("ada"):
        raise ZeroDivisionError
    with crowd.place("ada"), pytest.raises(Full), crowd.place("ada"):
        pass
    assert len(crowd) == 0


def parsed(data: bytes) -> list[dict[str, str]]:
    """Frames as the standard says that a browser reads them: lines end with CR LF, LF or CR."""
    events: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in re.split("\r\n|\n|\r", data.decode("utf-8").removeprefix("\ufeff")):
        name, _, value = line.partition(":")
        if not line:
            if "data" in fields:
                events.append(fields)
            fields = {}
        elif name:
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
    return events


HOSTILE = st.text(st.sampled_from("ab.:\r\n\0\u0085\u2028 {}\"\\'data:idevent") | st.characters(codec="utf-8"))
JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | HOSTILE, lambda inner: st.lists(inner))


@given(name=HOSTILE, id=HOSTILE, data=st.dictionaries(HOSTILE, JSON))
@example(name="x\r\nevent: y\n\n", id="1\n\ndata: {}", data={"\r\n\r\n": "data: x\r\rid: 9"})
def test_whatever_is_in_its_fields_a_frame_is_one_event(name: str, id: str, data: dict[str, Any]) -> None:
    """Line breaks and field names in subject, id or data never begin a field or an event of their own."""
    [event] = parsed(frame(name, data, id=id, retry=5))
    assert event.keys() <= {"event", "id", "data", "retry"}
    assert event["retry"] == "5"
    assert json.loads(event["data"]) == data
    assert not re.search("[\r\n\0]", event["event"] + event["id"])


HUB = Hub.__new__(Hub)
HUB.log_id = "a1"


@given(subject=HOSTILE, id=HOSTILE, body=st.dictionaries(HOSTILE, JSON), indent=st.sampled_from([None, 1]))
def test_foreign_messages_are_one_event(subject: str, id: str, body: dict[str, Any], indent: int | None) -> None:
    """A message by any client, pretty-printed or with any id, reaches the browser as it was, in one event."""
    entry = Entry(7, subject, 0.0, {}, json.dumps(body, indent=indent).encode())
    [event] = parsed(event_frame(HUB, entry, Message(entry, body, id=id)))
    told = json.loads(event["data"])
    assert (event["id"], told["id"], told["data"], told["subject"]) == ("a1-7", id, body, subject)


@given(given=HOSTILE | st.from_regex(r"a1-.*") | st.from_regex(r"\A(a1|.*)-[0-9]*\Z"))
def test_a_hostile_place_is_a_place_or_none(given: str) -> None:
    """Whatever is sent as `Last-Event-ID`, it is a position within the log or it is not resumed; it never raises."""
    position = position_of(given, HUB, 3, 9)
    assert position is None or (3 <= position <= 9 and given.startswith("a1-"))


def frameworks() -> list[Any]:
    return [pytest.param(make, id=make.__name__) for make in (starlette_app, fastapi_app, litestar_app, django_app)]


def starlette_app(bus: tidings.Bus, endpoint: push.Push) -> Any:
    return Starlette(routes=[Mount("/push", endpoint)], lifespan=bus.lifespan(workers=True))


def fastapi_app(bus: tidings.Bus, endpoint: push.Push) -> Any:
    from fastapi import FastAPI

    app = FastAPI(lifespan=bus.lifespan(workers=True))
    app.mount("/push", endpoint)
    return app


def litestar_app(bus: tidings.Bus, endpoint: push.Push) -> Any:
    from litestar import Litestar, asgi

    return Litestar(
        route_handlers=[asgi("/push", is_mount=True, copy_scope=True)(endpoint)], lifespan=[bus.lifespan(workers=True)]
    )


def django_app(bus: tidings.Bus, endpoint: push.Push) -> Any:
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application

    if not settings.configured:
        settings.configure(ROOT_URLCONF=(), SECRET_KEY="x", ALLOWED_HOSTS=["127.0.0.1"])
        django.setup()
    routes = [Mount("/push", endpoint), Mount("/", get_asgi_application())]
    return Starlette(routes=routes, lifespan=bus.lifespan(workers=True))


@pytest.mark.parametrize("make", frameworks())
async def test_every_framework_serves_it(make: Callable[[tidings.Bus, push.Push], Any]) -> None:
    """Mounted in Starlette, FastAPI, Litestar and beside Django: a real browser's requests get stream and module."""
    bus, endpoint = notes()
    async with served(make(bus, endpoint)) as url, httpx.AsyncClient(base_url=url, timeout=10) as client:
        assert (await client.get("/push/tidings.js")).status_code == 200
        async with client.stream("GET", "/push/", follow_redirects=True) as response:
            events = Stream(response)
            assert (await events.next()).name == "ready"
            wanted = await bus.publish(Wanted(owner="ada"))
            event: Event = await events.next()
            assert (event.name, event.data["correlation"]) == ("events.note.kept", wanted.id)
        question = {"id": wanted.id, "position": str(wanted.position)}
        assert (await client.get("/push/outcome", params=question)).json()["state"] == "done"
        assert (await client.get("/nowhere")).status_code == 404


async def test_the_page_on_push_shows_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application in docs/push.md runs as it stands: it waits, tells the outcome, and pushes to whom it should."""
    page = (Path(__file__).parents[2] / "docs" / "push.md").read_text()
    [code] = re.findall(r"<!-- file: web.py -->\n```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("TIDINGS_URL", "memory:")
    shop = ModuleType("shop_of_the_page")
    monkeypatch.setitem(sys.modules, shop.__name__, shop)  # where annotations are looked up
    exec(code, shop.__dict__)
    async with served(shop.app) as url, httpx.AsyncClient(base_url=url, cookies={"customer": "ada"}) as client:
        async with client.stream("GET", "/push/") as response:
            events = Stream(response)
            await events.next()
            refused = await client.post("/orders/mallory")
            answer = await client.post("/orders/ada")
            assert (answer.status_code, answer.json()) == (200, {"customer": "ada"})
            assert (await events.next()).data["data"] == {"customer": "ada"}
        assert refused.status_code == 202
        assert (await client.get(f"/orders/{refused.json()['id']}")).json() == {"state": "dead"}


class Large(tidings.Event, subject="events.note.large"):
    text: str


async def test_a_frozen_browser_is_dropped_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stays connected and takes nothing is cut off after the time to send, its place is free again, nothing
    has queued up for it, and its neighbour has had everything."""
    monkeypatch.setattr(endpoint, "PATIENCE", 0.5)
    bus = tidings.Bus("notes", url="memory:")
    application = bus.push(Large)
    app = Starlette(routes=[Mount("/push", application)], lifespan=bus.lifespan)
    async with served(app) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        frozen = socket.create_connection((client.base_url.host, client.base_url.port))
        frozen.sendall(b"GET /push/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with client.stream("GET", "/push/") as response:
            neighbour = Stream(response)
            await neighbour.next()
            await eventually(lambda: len(application._crowd) == 2)
            for number in range(100):
                await bus.publish(Large(text=f"{number} " + 200_000 * "x"))
                assert (await neighbour.next()).data["data"]["text"].startswith(f"{number} ")
            await eventually(lambda: len(application._crowd) == 1)
        frozen.setblocking(True)  # it wakes up: what was under way is there, and then the end, not the rest
        frozen.settimeout(10)
        taken = 0
        with suppress(ConnectionResetError):
            while part := frozen.recv(1 << 20):
                taken += len(part)
        frozen.close()
    assert taken < 100 * 200_000
