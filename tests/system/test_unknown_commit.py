"""Commits whose outcome nobody knows, deadlocks and their like: the handler runs again within the delivery, and the
inbox decides whether there is anything left to do."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import tidings
from postgres_proxy import Proxy
from sql_app import App
from tidings.settings import Settings

if TYPE_CHECKING:
    from databases import Place, Server

pytest_plugins = ("databases",)

EFFECT = "INSERT INTO effects (number) VALUES (:number)"
COMMITS = pytest.mark.parametrize("commit", ["each", "group"])


class Ordered(tidings.Event, subject="events.shop.ordered"):
    number: int


class Packed(tidings.Event, subject="events.shop.packed"):
    number: int


class Shop:
    """A bus on the memory engine whose leases never end: nobody but this process sends what it has staged."""

    def __init__(self, app: App, commit: Literal["each", "group"], *, sync: bool = False) -> None:
        self.app = app
        self.runs: list[int] = []
        self.attempts: set[int] = set()
        self.beside: Callable[[], Awaitable[None]] | None = None
        sessions: Any = {"sync_sessions": app.sessions} if sync else {"sessions": app.sessions}
        self.bus = tidings.Bus("shop", settings=Settings(url="memory:", lease=3000.0), **sessions)
        handler = self._plain() if sync else self._async()
        self.bus.on(Ordered, group="pack", commit=commit)(handler)

    def _async(self) -> Any:
        async def pack(order: Ordered, about: tidings.Message, db: AsyncSession) -> Packed:
            self._note(about)
            if self.beside is not None:
                await self.beside()
            await db.execute(text(EFFECT), {"number": order.number})
            return Packed(number=order.number)

        return pack

    def _plain(self) -> Any:
        def pack(order: Ordered, about: tidings.Message, db: Session) -> Packed:
            self._note(about)
            db.execute(text(EFFECT), {"number": order.number})
            return Packed(number=order.number)

        return pack

    def _note(self, about: tidings.Message) -> None:
        self.runs.append(about.data.number)
        self.attempts.add(about.attempt)

    async def publish(self, first: int, count: int) -> None:
        await self.bus.publish_many([Ordered(number=number) for number in range(first, first + count)])

    async def packed(self, count: int) -> None:
        """Wait until so many have been handled and announced, and nothing is under way any more."""
        async with asyncio.timeout(30):
            while len(await self._announced()) < count or self._busy():
                await asyncio.sleep(0.01)

    async def exactly_once(self, count: int) -> None:
        """Each has one row and one event, no attempt was burnt, nothing is dead or left."""
        await self.packed(count)
        rows = await self.app.sql("SELECT number FROM effects")
        assert Counter(number for (number,) in rows) == Counter(range(count))
        assert Counter(await self._announced()) == Counter(b'{"number":%d}' % number for number in range(count))
        assert self.attempts == {1}
        assert await self.bus.engine.dead_letters() == []
        assert await self.app.count("tidings_outbox") == 0

    async def _announced(self) -> list[bytes]:
        return [entry.body for entry in await self.bus.engine.read(["events.shop.packed"], 0, 1000)]

    def _busy(self) -> bool:
        assert self.bus.connected is not None
        assert self.bus.connected.worker is not None
        return self.bus.connected.worker.busy


@asynccontextmanager
async def opened(shop: Shop) -> AsyncIterator[Shop]:
    """At work, and warm: everything is connected, and the first sweep of the outbox is over."""
    await shop.app.units.migrations.upgrade()
    await shop.app.sql("CREATE TABLE IF NOT EXISTS effects (number integer)")
    try:
        async with shop.bus:
            await shop.bus.work()
            await shop.publish(0, 1)
            await shop.packed(1)
            yield shop
    finally:
        await shop.app.close()


@COMMITS
@pytest.mark.parametrize("moment", ["cut_at", "cut_before"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sync"])
async def test_a_connection_lost_during_commit(
    postgresql: Place, postgresql_server: Server, driver: str, moment: str, commit: Literal["each", "group"]
) -> None:
    """Whether the COMMIT arrived and its answer did not, or it never did: each message changes the database once, and
    what follows from it leaves at once, by this process, once."""
    async with Proxy(postgresql_server.port) as proxy:
        place = postgresql.through(proxy.port)
        app = App(place.with_driver("psycopg") if driver == "psycopg" else place, sync=driver == "sync")
        async with opened(Shop(app, commit, sync=driver == "sync")) as shop:
            setattr(proxy, moment, b"COMMIT")
            await shop.publish(1, 9)
            await shop.exactly_once(10)
            assert getattr(proxy, moment) == b"", "nothing was cut"
            assert (len(shop.runs) > 10) == (moment == "cut_before")


@COMMITS
@pytest.mark.parametrize("state", ["40001", "40P01", "55P03"])
async def test_a_transaction_that_lost_runs_again(
    postgresql: Place, state: str, commit: Literal["each", "group"]
) -> None:
    """A serialization failure, a deadlock, a lock that was not to be had: run again at once, no attempt is burnt."""
    app = App(postgresql)
    async with opened(Shop(app, commit)) as shop:
        await app.sql("CREATE SEQUENCE tries")
        body = f"BEGIN IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'lost' USING ERRCODE = '{state}'; END IF; "
        await app.sql(f"CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $${body} RETURN new; END$$")
        await app.sql("CREATE TRIGGER lose BEFORE INSERT ON effects FOR EACH ROW EXECUTE FUNCTION lose()")
        await shop.publish(1, 9)
        await shop.exactly_once(10)
        assert len(shop.runs) > 10


@COMMITS
async def test_sqlite_busy_in_the_middle_runs_again(sqlite: Place, commit: Literal["each", "group"]) -> None:
    """A handler that also writes to a file that somebody else has locked runs again with its transaction."""
    app = App(sqlite)
    other = create_async_engine(sqlite.url.replace("app.db", "other.db"), connect_args={"timeout": 0})
    locker = sqlite3.connect(str(other.url.database), isolation_level=None)
    locker.execute("CREATE TABLE notes (number integer)")
    locker.execute("BEGIN IMMEDIATE")
    shop = Shop(app, commit)

    async def note() -> None:
        if len(shop.runs) == 4:
            locker.execute("COMMIT")
        if len(shop.runs) > 1:  # the first is the one that warms up
            async with other.begin() as connection:
                await connection.execute(text("INSERT INTO notes VALUES (1)"))

    shop.beside = note
    async with opened(shop):
        await shop.publish(1, 9)
        await shop.exactly_once(10)
        assert len(shop.runs) > 10
    locker.close()
    await other.dispose()
