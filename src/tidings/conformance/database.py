"""Handlers with a transaction: writes, inbox mark and follow-ups together, on a SQLite file."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tidings import Bus, Message, Request
from tidings.engine import Engine
from tidings.errors import MissingExtra, PublishInTransaction, RemoteError

from .app import AT_ONCE, Ordered, Packed, application, bodies, handled, letters, process, reached
from .case import case
from .steps import raising
from .world import WiredWorld, World

try:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
except ImportError as error:
    raise MissingExtra("The conformance suite's database", "sql") from error


class Rows(Request[int], subject="shop.rows"):
    """Writes one row and asks how many there are."""

    fail: bool = False


class Database:
    """A file with one table of the application's own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.sessions = async_sessionmaker(engine)

    async def rows(self) -> list[int]:
        async with self.sessions() as session:
            return [row[0] for row in await session.execute(text("SELECT number FROM items ORDER BY number"))]

    async def create_steps(self) -> None:
        """A second table, whose rows know when they came."""
        async with self.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE steps (place integer PRIMARY KEY, item text, step integer)"))

    async def steps(self) -> dict[str, list[int]]:
        """Each item's steps in the order of their commits."""
        found: dict[str, list[int]] = {}
        async with self.sessions() as session:
            for row in await session.execute(text("SELECT item, step FROM steps ORDER BY place")):
                found.setdefault(row.item, []).append(row.step)
        return found


async def write(session: AsyncSession, number: int) -> None:
    """What a handler does."""
    await session.execute(text("INSERT INTO items (number) VALUES (:number)"), {"number": number})


async def write_step(session: AsyncSession, item: str, step: int) -> None:
    """As `write`, into the second table."""
    where = {"item": item, "step": step}
    await session.execute(text("INSERT INTO steps (item, step) VALUES (:item, :step)"), where)


@asynccontextmanager
async def database() -> AsyncIterator[Database]:
    with tempfile.TemporaryDirectory(prefix="tidings-conformance-") as directory:
        engine = create_async_engine(f"sqlite+aiosqlite:///{Path(directory, 'app.db')}")
        try:
            async with engine.begin() as connection:
                await connection.execute(text("CREATE TABLE items (number integer)"))
            yield Database(engine)
        finally:
            await engine.dispose()


@case("bus")
async def commit_brings_everything(world: World) -> None:
    """A handler's writes, and the event it returns, come with the commit: both are there, once."""
    async with database() as db:
        bus = application(world, sessions=db.sessions)

        @bus.on(Ordered, group="pack")
        async def pack(order: Ordered, session: AsyncSession) -> Packed:
            await write(session, order.number)
            return Packed(number=order.number)

        async with process(world, bus) as running:
            await bus.publish_many([Ordered(number=number) for number in range(10)])
            await handled(world, running.engine, "pack")
            await reached(world, lambda: _stored(running.engine, 10), "the follow-ups leave")
            stored = await bodies(running.engine, "events.shop.packed")
        assert await db.rows() == list(range(10))
        assert sorted(stored) == [b'{"number":%d}' % number for number in range(10)]


@case("bus")
async def failure_leaves_nothing_behind(world: World) -> None:
    """A handler that fails leaves no row and no event behind; the try that succeeds leaves one of each."""
    async with database() as db:
        bus = application(world, sessions=db.sessions)

        @bus.on(Ordered, group="pack")
        async def pack(order: Ordered, about: Message, session: AsyncSession) -> Packed:
            await write(session, order.number)
            if about.attempt < AT_ONCE.attempts or order.number == 2:
                raise ValueError("too late")
            return Packed(number=order.number)

        async with process(world, bus) as running:
            await bus.publish_many([Ordered(number=1), Ordered(number=2)])
            [letter] = await letters(world, running.engine, "pack")
            await handled(world, running.engine, "pack")
            await reached(world, lambda: _stored(running.engine, 1), "the follow-up leaves")
            assert await bodies(running.engine, "events.shop.packed") == [b'{"number":1}']
        assert await db.rows() == [1]
        assert letter.entry.body == b'{"number":2}'


@case("bus")
async def a_redelivery_changes_nothing(world: World) -> None:
    """A process that dies after its commit and before its event is settled: whoever gets the event again changes
    nothing, and the event is handled."""
    async with database() as db:
        runs: list[str] = []
        engine = await world.engine()

        def shop(name: str) -> Bus:
            bus = application(world, sessions=db.sessions)

            @bus.on(Ordered, group="pack")
            async def pack(order: Ordered, session: AsyncSession) -> None:
                runs.append(name)
                await write(session, order.number)
                if name == "doomed":
                    await world.crash(engine)

            return bus

        web = application(world, "web")
        async with process(world, web, work=False) as running:
            async with process(world, shop("doomed"), engine=engine):
                await web.publish(Ordered(number=1))
                await reached(world, db.rows, "it is committed")
            async with process(world, shop("other")):
                await handled(world, running.engine, "pack")
        assert await db.rows() == [1]
        assert runs == ["doomed"]


@case("bus", wired=True)
async def a_late_commit_is_fenced(world: WiredWorld) -> None:
    """A worker cut off for longer than its lease commits nothing any more: the other one's row is the only one."""
    async with database() as db:
        runs: list[str] = []
        release = asyncio.Event()
        engine, link = await world.linked()

        def shop(name: str) -> Bus:
            bus = application(world, sessions=db.sessions)

            @bus.on(Ordered, group="pack")
            async def pack(order: Ordered, session: AsyncSession) -> None:
                runs.append(name)
                if name == "cut off":
                    await release.wait()
                await session.execute(text("INSERT INTO items (number) VALUES (1)"))

            return bus

        web = application(world, "web")
        async with process(world, web, work=False) as running, process(world, shop("cut off"), engine=engine):
            await web.publish(Ordered(number=1))
            await reached(world, lambda: bool(runs), "it has begun")
            link.cut()
            await world.wait(1.5 * world.lease)
            release.set()
            async with process(world, shop("other")):
                await handled(world, running.engine, "pack")
            link.mend()
        assert await db.rows() == [1]
        assert runs[0] == "cut off"


@case("bus")
async def the_outbox_follows_the_transaction(world: World) -> None:
    """What is published through the outbox of a transaction leaves after its commit, and not at all after a
    rollback."""
    async with database() as db:
        bus = application(world, sessions=db.sessions)
        async with process(world, bus, work=False) as running:
            async with db.sessions() as session:
                await bus.outbox(session).publish(Ordered(number=1))
                await session.rollback()
            async with db.sessions() as session, session.begin():
                await write(session, 2)
                await bus.outbox(session).publish(Ordered(number=2))
                assert await bodies(running.engine, "events.>") == []
            await reached(world, lambda: bodies(running.engine, "events.>"), "the committed one leaves")
            await world.wait(world.moment)
            assert await bodies(running.engine, "events.>") == [b'{"number":2}']


@case("bus", wired=True)
async def the_outbox_waits_for_the_server(world: WiredWorld) -> None:
    """What is committed while the server is away is kept, and leaves by itself when it is back, once."""
    async with database() as db:
        bus = application(world, sessions=db.sessions)
        engine, link = await world.linked(patience=1.0)
        async with process(world, bus, work=False, engine=engine):
            link.cut()
            for number in range(5):
                async with db.sessions() as session, session.begin():
                    await bus.outbox(session).publish(Ordered(number=number))
            await world.wait(world.moment)
            link.mend()
            reader = await world.engine()
            await reached(world, lambda: _stored(reader, 5, "events.shop.ordered"), "they leave")
            await world.wait(world.moment)
            assert len(await bodies(reader, "events.>")) == 5


@case("bus")
async def publishing_beside_a_transaction_is_refused(world: World) -> None:
    """`publish` inside a handler with a transaction raises, because it would not belong to it; `now=True` says that
    this is meant."""
    async with database() as db:
        told: list[str] = []
        bus = application(world, sessions=db.sessions)

        @bus.on(Ordered, group="pack")
        async def pack(order: Ordered, session: AsyncSession) -> None:
            with raising(PublishInTransaction):
                await bus.publish(Packed(number=1))
            await bus.publish(Packed(number=2), now=True)
            told.append("refused")

        async with process(world, bus) as running:
            await bus.publish(Ordered(number=1))
            await handled(world, running.engine, "pack")
            assert await bodies(running.engine, "events.shop.packed") == [b'{"number":2}']
        assert told == ["refused"]


@case("bus")
async def an_answer_comes_after_its_commit(world: World) -> None:
    """A request whose handler takes a transaction is answered when that is committed; after an error nothing is."""
    async with database() as db:
        bus = application(world, sessions=db.sessions)

        @bus.reply(Rows)
        async def rows(question: Rows, session: AsyncSession) -> int:
            await write(session, 1)
            if question.fail:
                raise ValueError("no")
            return int((await session.execute(text("SELECT count(*) FROM items"))).scalar_one())

        async with process(world, bus):
            assert await bus.request(Rows(), timeout=30) == 1
            assert await db.rows() == [1]
            with raising(RemoteError):
                await bus.request(Rows(fail=True), timeout=30)
            assert await db.rows() == [1]


async def _stored(engine: Engine, count: int, filter: str = "events.shop.packed") -> bool:
    return len(await bodies(engine, filter)) >= count
