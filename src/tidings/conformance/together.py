"""Many messages together: a transaction for all that wait, and batch handlers; on a SQLite file."""

from __future__ import annotations

import asyncio

from tidings import Batch, Bus, Message
from tidings.engine import Engine
from tidings.errors import MissingExtra

from .app import Ordered, Packed, application, bodies, handled, letters, process, reached
from .case import case
from .database import database, write
from .world import WiredWorld, World

try:
    from sqlalchemy import event, text
    from sqlalchemy.ext.asyncio import AsyncSession
except ImportError as error:
    raise MissingExtra("The conformance suite's database", "sql") from error

MANY = 60


def orders(count: int = MANY) -> list[Ordered]:
    return [Ordered(number=number) for number in range(count)]


@case("bus")
async def what_waits_shares_a_commit(world: World) -> None:
    """Messages that wait are handled in a few transactions: rows and follow-ups of all of them are there, once."""
    async with database() as db:
        bus, commits = application(world, sessions=db.sessions), list[object]()

        @bus.on(Ordered, group="pack")
        async def pack(order: Ordered, session: AsyncSession) -> Packed:
            await write(session, order.number)
            return Packed(number=order.number)

        @event.listens_for(db.engine.sync_engine, "before_cursor_execute")
        def told(*given: object) -> None:
            if "tidings_inbox" in str(given[2]):
                commits.append(given[2])

        web = application(world, "web")
        async with process(world, bus, work=False):
            pass
        async with process(world, web, work=False) as running:
            await web.publish_many(orders())
            async with process(world, bus):
                await handled(world, running.engine, "pack")
                await reached(world, lambda: _stored(running.engine, MANY), "the follow-ups leave")
        assert await db.rows() == list(range(MANY))
        assert len(commits) < MANY / 3


async def _stored(engine: Engine, count: int) -> bool:
    return len(await bodies(engine, "events.shop.packed")) >= count


@case("bus")
async def a_poison_message_spoils_no_group(world: World) -> None:
    """One message among many always fails, after it has written: it alone becomes a dead letter, and no other loses an
    attempt."""
    async with database() as db:
        bus = application(world, sessions=db.sessions)
        attempts: set[int] = set()

        @bus.on(Ordered, group="pack")
        async def pack(order: Ordered, about: Message, session: AsyncSession) -> None:
            await write(session, order.number)
            if order.number == 42:
                raise ValueError("poison")
            attempts.add(about.attempt)

        async with process(world, bus) as running:
            await bus.publish_many(orders())
            [letter] = await letters(world, running.engine, "pack")
            await handled(world, running.engine, "pack")
        assert letter.entry.body == b'{"number":42}'
        assert attempts == {1}
        assert await db.rows() == [number for number in range(MANY) if number != 42]


@case("bus")
async def a_group_loses_no_update(world: World) -> None:
    """Handlers that read a counter, flush and write back what they have computed count every message, although they
    share transactions."""
    async with database() as db:
        bus = application(world, sessions=db.sessions)

        @bus.on(Ordered, group="count")
        async def count(order: Ordered, session: AsyncSession) -> None:
            number = (await session.execute(text("SELECT number FROM items"))).scalar_one()
            await session.flush()
            await session.execute(text("UPDATE items SET number = :number"), {"number": number + 1})

        async with db.sessions() as session, session.begin():
            await write(session, 0)
        async with process(world, bus) as running:
            await bus.publish_many(orders())
            await handled(world, running.engine, "count")
        assert await db.rows() == [MANY]


@case("bus")
async def a_group_that_comes_again_changes_nothing(world: World) -> None:
    """A process that dies between the commit of many messages and their settling: whoever gets them again changes
    nothing."""
    async with database() as db:
        engine = await world.engine()

        def shop(doomed: bool) -> Bus:
            bus = application(world, sessions=db.sessions)

            @bus.on(Ordered, group="pack")
            async def pack(order: Ordered, session: AsyncSession) -> None:
                await write(session, order.number)
                if doomed and order.number == 5:
                    await world.crash(engine)

            return bus

        web = application(world, "web")
        async with process(world, shop(False), work=False):
            pass
        async with process(world, web, work=False) as running:
            await web.publish_many(orders(10))
            async with process(world, shop(True), engine=engine):
                await reached(world, db.rows, "a group is committed")
            async with process(world, shop(False)):
                await handled(world, running.engine, "pack")
        assert await db.rows() == list(range(10))


@case("bus")
async def a_stopped_group_is_handed_back(world: World) -> None:
    """A worker that stops in the middle of a group commits nothing of it; the next one gets all of it at once, with
    the first attempt."""
    async with database() as db:
        begun = asyncio.Event()
        attempts: set[int] = set()

        def shop(hangs: bool) -> Bus:
            bus = application(world, sessions=db.sessions)

            @bus.on(Ordered, group="pack")
            async def pack(order: Ordered, about: Message, session: AsyncSession) -> None:
                await write(session, order.number)
                attempts.add(about.attempt)
                if hangs and order.number == 3:
                    begun.set()
                    await asyncio.Event().wait()

            return bus

        web = application(world, "web")
        async with process(world, shop(False), work=False):
            pass
        async with process(world, web, work=False) as running:
            await web.publish_many(orders(10))
            async with process(world, shop(True)):
                await begun.wait()
            assert await db.rows() == []
            async with process(world, shop(False)):
                await handled(world, running.engine, "pack")
        assert await db.rows() == list(range(10))
        assert attempts == {1}


@case("bus", wired=True)
async def a_late_group_is_fenced(world: WiredWorld) -> None:
    """A worker cut off for longer than its leases commits nothing of a group that it has begun before."""
    async with database() as db:
        release, begun = asyncio.Event(), asyncio.Event()
        engine, link = await world.linked()

        def shop(waits: bool) -> Bus:
            bus = application(world, sessions=db.sessions)

            @bus.on(Ordered, group="pack")
            async def pack(order: Ordered, session: AsyncSession) -> None:
                if waits:
                    begun.set()
                    await release.wait()
                await write(session, order.number)

            return bus

        web = application(world, "web")
        async with process(world, shop(False), work=False):
            pass
        async with process(world, web, work=False) as running:
            await web.publish_many(orders(10))
            async with process(world, shop(True), engine=engine):
                await begun.wait()
                link.cut()
                await world.wait(1.5 * world.lease)
                release.set()
                async with process(world, shop(False)):
                    await handled(world, running.engine, "pack")
                link.mend()
        assert await db.rows() == list(range(10))


@case("bus")
async def a_batch_has_an_outcome_for_each(world: World) -> None:
    """A batch handler gets what waits in one call; the message that it fails is retried by itself and becomes a dead
    letter, and of all others the rows and the follow-ups are there, once."""
    async with database() as db:
        bus, sizes = application(world, sessions=db.sessions), list[int]()

        @bus.on(Ordered, group="pack")
        async def pack(batch: Batch[Ordered], session: AsyncSession) -> None:
            sizes.append(len(batch))
            for index, order in enumerate(batch):
                if order.number == 42:
                    batch.fail(index, ValueError("not this one"))
                else:
                    await write(session, order.number)
                    batch.follow(index, Packed(number=order.number))

        async with process(world, bus) as running:
            await bus.publish_many(orders())
            [letter] = await letters(world, running.engine, "pack")
            await handled(world, running.engine, "pack")
            await reached(world, lambda: _stored(running.engine, MANY - 1), "the follow-ups leave")
            assert len(await bodies(running.engine, "events.shop.packed")) == MANY - 1
        assert letter.entry.body == b'{"number":42}'
        assert letter.attempts == 3
        assert await db.rows() == [number for number in range(MANY) if number != 42]
        assert len(sizes) < MANY / 3


@case("bus")
async def a_batch_that_raises_is_handled_singly(world: World) -> None:
    """An exception out of a batch handler blames nobody: the messages are handled again, without a transaction each in
    a batch of one, and only the one that fails there counts attempts."""
    bus, done = application(world), set[tuple[int, int]]()

    @bus.on(Ordered, group="pack")
    async def pack(batch: Batch[Ordered]) -> None:
        if any(order.number == 42 for order in batch):
            raise ValueError("one of them")
        done.update((message.data.number, message.attempt) for message in batch.messages)

    async with process(world, bus) as running:
        await bus.publish_many(orders())
        [letter] = await letters(world, running.engine, "pack")
        await handled(world, running.engine, "pack")
    assert letter.entry.body == b'{"number":42}'
    assert done == {(number, 1) for number in range(MANY) if number != 42}
