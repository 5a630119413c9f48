"""Web routes that write an order and announce it, on real databases: the event leaves with the commit."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session

import tidings
from sql_app import App
from tidings.errors import ConfigError

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)

ORDER = text("INSERT INTO items (id, n) VALUES (:number, 0)")


class Ordered(tidings.Event, subject="events.shop.ordered"):
    number: int


async def reached(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def announced(bus: tidings.Bus, count: int) -> list[bytes]:
    """The bodies in the log, once there are so many and nothing more is on its way."""

    async def there() -> bool:
        return not bus_is_busy(bus) and len(await bus.engine.read(["events.>"], 0, 100)) >= count

    await reached(there)
    return [entry.body for entry in await bus.engine.read(["events.>"], 0, 100)]


def bus_is_busy(bus: tidings.Bus) -> bool:
    assert bus.connected is not None
    return any(relay.busy for relay in bus.connected.relays)


@pytest.fixture(params=["sqlite", "asyncpg", "psycopg"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the async drivers."""
    found: Place = request.getfixturevalue("sqlite" if request.param == "sqlite" else "postgresql")
    return found.with_driver("psycopg") if request.param == "psycopg" else found


async def test_an_async_route(place: Place) -> None:
    """A FastAPI route with an `AsyncSession`: what it commits is announced, what it rolls back is not."""
    app = await App.start(place)
    bus = tidings.Bus("shop", url="memory:", sessions=app.sessions)
    web = FastAPI()

    @web.post("/orders/{number}")
    async def order(number: int) -> None:
        async with app.sessions() as db:
            await db.execute(ORDER, {"number": number})
            receipt = await bus.outbox(db).publish(Ordered(number=number))
            assert receipt.position == 0
            if number != 2:
                await db.commit()

    async with bus, httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client:
        for number in (1, 2, 3):
            assert (await client.post(f"/orders/{number}")).status_code == 200
        assert await announced(bus, 2) == [b'{"number":1}', b'{"number":3}']
    assert await app.count("items") == 2
    await app.close()


@pytest.mark.parametrize("bus_has", ["sync_sessions", "sessions"])
async def test_a_plain_route_with_a_sync_session(database: Place, bus_has: str) -> None:
    """A `def` route runs in a thread: `publish_sync` stages there, and the loop of the bus sends; it works as well
    for a bus that has been given the async sessions of the same database only."""
    app, other = await App.start(database, sync=True), await App.start(database)
    given = app.sessions if bus_has == "sync_sessions" else other.sessions
    bus = tidings.Bus("shop", url="memory:", **{bus_has: given})
    web = FastAPI()

    @web.post("/orders/{number}")
    def order(number: int) -> None:
        with app.sessions() as db:
            db.execute(ORDER, {"number": number})
            bus.outbox(db).publish_sync(Ordered(number=number), key="k")
            if number != 2:
                db.commit()

    async with bus, httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client:
        for number in (1, 2, 3):
            assert (await client.post(f"/orders/{number}")).status_code == 200
        assert await announced(bus, 2) == [b'{"number":1}', b'{"number":3}']
    await app.close()
    await other.close()


async def test_a_wsgi_application(sqlite: Place) -> None:
    """Without any event loop of its own (as under Flask): the first publish connects the bus in a thread."""
    app = await App.start(sqlite, sync=True)
    bus = tidings.Bus("shop", url="memory:", sync_sessions=app.sessions)

    def wsgi(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        number = int(environment["PATH_INFO"].rpartition("/")[2])
        with Session(app.engine) as db, db.begin():
            db.execute(ORDER, {"number": number})
            receipt = bus.outbox(db).publish_sync(Ordered(number=number))
        start("202 Accepted", [])
        return [receipt.id.encode()]

    def call(number: int) -> bytes:
        environment: dict[str, Any] = {"PATH_INFO": f"/orders/{number}", "wsgi.input": io.BytesIO()}
        setup_testing_defaults(environment)
        return b"".join(wsgi(environment, lambda *_: None))

    ids = [await asyncio.to_thread(call, number) for number in (1, 2)]
    assert bus.connected is not None
    there = asyncio.run_coroutine_threadsafe(announced(bus, 2), bus.connected.loop)
    assert await asyncio.wrap_future(there) == [b'{"number":1}', b'{"number":2}']
    assert len(set(ids)) == 2
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(bus.close(), bus.connected.loop))
    await app.close()


async def test_the_wrong_way_says_the_right_one(sqlite: Place) -> None:
    """`publish` with a sync session and `publish_sync` with an async one raise and name the other; connecting inside
    a running loop is refused, as it would block it."""
    app, sync_app = await App.start(sqlite), await App.start(sqlite, sync=True)
    bus = tidings.Bus("shop", url="memory:", sessions=app.sessions)
    with sync_app.sessions() as sync_session:
        with pytest.raises(ConfigError, match="would block this event loop"):
            bus.outbox(sync_session).publish_sync(Ordered(number=1))
        async with bus:
            with pytest.raises(ConfigError, match="publish_sync"):
                await bus.outbox(sync_session).publish(Ordered(number=1))
            async with app.sessions() as session:
                with pytest.raises(ConfigError, match=r"await bus\.outbox\(session\)\.publish"):
                    bus.outbox(session).publish_sync(Ordered(number=1))
    await app.close()
    await sync_app.close()
