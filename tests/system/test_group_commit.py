"""Many messages in one transaction, on SQLite and PostgreSQL: as if each had one of its own, at the price of one."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

import tidings
from items import Base, Counter, Item, New, Saved
from tidings.clock import SystemClock
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.sql import units_for
from tidings.sql.shared import SessionMember
from tidings.testing import TestBus, attached

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)

AT_ONCE = tidings.RetryPolicy(attempts=3, first=0, most=0)
MANY = 100


class App:
    """A bus on a database of its own, with what the database was told."""

    def __init__(self, place: Place, sync: bool) -> None:
        self.kind = place.kind
        self.sync = sync
        engine: Any = place.sync_engine() if sync else place.engine()
        self.engine = engine
        self.sessions: Any = sessionmaker(engine) if sync else async_sessionmaker(engine)
        self.commits = 0
        self.statements: list[str] = []
        retry = tidings.Settings(retry=AT_ONCE, timeout=60)
        self.bus = (
            tidings.Bus("app", sync_sessions=self.sessions, settings=retry)
            if sync
            else tidings.Bus("app", sessions=self.sessions, settings=retry)
        )

    async def start(self) -> None:
        await units_for(self.sessions).migrations.upgrade()
        if self.sync:
            await asyncio.to_thread(Base.metadata.create_all, self.engine)
        else:
            async with self.engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
        bare = self.engine if self.sync else self.engine.sync_engine
        event.listen(bare, "commit", self._committed)
        event.listen(bare, "before_cursor_execute", self._executed)

    async def stop(self) -> None:
        if self.sync:
            await asyncio.to_thread(self.engine.dispose)
        else:
            await self.engine.dispose()

    async def handle(self, numbers: list[int], **more: Any) -> Handled:
        """Publish all at once, wait until everything is handled."""
        async with TestBus(self.bus) as t:
            self.commits, self.statements = 0, []
            await self.bus.publish_many([New(number=number) for number in numbers])
            await t.settle(60)
            commits, statements = self.commits, list(self.statements)
            letters = [letter.entry.body for letter in await t.dead_letters()]
            saved = [message.data for message in await t.published("events.saved")]
        return Handled(self.kind, commits, statements, letters, saved)

    async def rows(self, what: Any) -> list[Any]:
        if self.sync:
            return await asyncio.to_thread(self._rows, what)
        async with self.sessions() as session:
            return list((await session.execute(what)).all())

    async def numbers(self) -> list[int]:
        return [row[0] for row in await self.rows(select(Item.number).order_by(Item.number))]

    def _rows(self, what: Any) -> list[Any]:
        with self.sessions() as session:
            return list(session.execute(what).all())

    def _committed(self, connection: Connection) -> None:
        self.commits += 1

    def _executed(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement)


class Handled:
    """What became of the messages of one `App.handle`."""

    def __init__(self, kind: str, commits: int, statements: list[str], letters: list[bytes], saved: list[Any]) -> None:
        self.kind = kind
        self.commits = commits
        self.statements = statements
        self.letters = letters
        self.saved = saved

    def shares_inserts(self) -> bool:
        """Whether the rows came in few statements. For SQLite's generated keys SQLAlchemy sends one for each row."""
        inserts = sum("INTO app_items" in statement for statement in self.statements)
        return inserts < MANY / 4 or self.kind == "sqlite"


@pytest_asyncio.fixture
async def app(database: Place) -> AsyncIterator[App]:
    app = App(database, sync=False)
    await app.start()
    yield app
    await app.stop()


@pytest_asyncio.fixture
async def sync_app(database: Place) -> AsyncIterator[App]:
    app = App(database, sync=True)
    await app.start()
    yield app
    await app.stop()


async def test_what_waits_shares_a_commit_and_its_inserts(app: App) -> None:
    """A hundred waiting messages with one added object each are a few commits and a few INSERT statements."""

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        db.add(Item(number=new.number))

    handled = await app.handle(list(range(MANY)))
    assert await app.numbers() == list(range(MANY))
    assert handled.commits < MANY / 4
    assert handled.shares_inserts()


async def test_a_flush_for_the_id_is_shared(app: App) -> None:
    """A handler that flushes for its generated id, and returns an event with it, still shares the INSERT; each event
    has the id of its own row."""

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> Saved:
        row = Item(number=new.number)
        db.add(row)
        await db.flush()
        return Saved(number=new.number, id=row.id)

    handled = await app.handle(list(range(MANY)))
    rows = {number: id for id, number in await app.rows(select(Item.id, Item.number))}
    assert {saved.number: saved.id for saved in handled.saved} == rows
    assert len(handled.saved) == len(rows) == MANY
    assert handled.shares_inserts()


async def test_what_is_changed_after_a_shared_flush_is_kept(app: App) -> None:
    """Attributes set, and objects added, after the shared flush are written with the commit."""

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        row = Item(number=new.number)
        db.add(row)
        await db.flush()
        row.seen = row.id
        db.add(Item(number=new.number + 1000))
        await db.flush()

    await app.handle(list(range(30)))
    rows = await app.rows(select(Item.id, Item.seen).where(Item.number < 1000))
    assert len(rows) == 30
    assert all(id == seen for id, seen in rows)
    assert len(await app.numbers()) == 60


@pytest.mark.parametrize("how", ["get", "select", "for update", "core", "flush first"])
async def test_no_update_is_lost(app: App, how: str) -> None:
    """Handlers that read a row, flush and write back what they have computed count every message, whichever way they
    read, and whatever they have added before."""

    @app.bus.on(New, group="count")
    async def count(new: New, db: AsyncSession) -> None:
        db.add(Item(number=new.number))
        if how == "flush first":
            await db.flush()
        if how == "core":
            value = (await db.execute(text("SELECT value FROM app_counters WHERE id = 1"))).scalar_one()
            await db.flush()
            await db.execute(text("UPDATE app_counters SET value = :v WHERE id = 1"), {"v": value + 1})
            return
        if how == "get":
            counter = await db.get(Counter, 1)
        else:
            query = select(Counter).where(Counter.id == 1)
            counter = (await db.execute(query.with_for_update() if how == "for update" else query)).scalar_one()
        assert counter is not None
        value = counter.value
        await db.flush()
        counter.value = value + 1
        await db.flush()

    async with app.sessions() as session, session.begin():
        session.add(Counter(id=1, value=0))
    handled = await app.handle(list(range(60)))
    assert (await app.rows(select(Counter.value)))[0][0] == 60
    assert await app.numbers() == list(range(60))
    assert handled.letters == []


@pytest.mark.parametrize("flush", [False, True])
async def test_nobody_sees_the_half_of_another(app: App, flush: bool) -> None:
    """A handler that adds a row and then counts them sees its own and those of whole others: every count from 1 to n
    comes once, with and without a flush before."""

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        row = Item(number=new.number)
        db.add(row)
        if flush:
            await db.flush()
        row.seen = (await db.execute(select(func.count()).select_from(Item))).scalar_one()

    await app.handle(list(range(60)))
    assert sorted(row[0] for row in await app.rows(select(Item.seen))) == list(range(1, 61))


@pytest.mark.parametrize("when", ["before", "added", "flushed", "executed", "returned"])
async def test_one_poison_message_fails_alone(app: App, when: str) -> None:
    """Among a hundred messages one always raises: it alone becomes a dead letter, after its own attempts, and no
    other loses one, whatever it had done before it raised."""
    attempts: dict[int, set[int]] = {}

    @app.bus.on(New, group="save")
    async def save(new: New, message: tidings.Message, db: AsyncSession) -> Any:
        attempts.setdefault(new.number, set()).add(message.attempt)
        if when != "before":
            db.add(Item(number=new.number))
        if when == "flushed":
            await db.flush()
        if when == "executed":
            await db.execute(update(Counter).values(value=1))
        if new.number == 42:
            if when == "returned":
                return "no event"
            raise ValueError("poison")
        if when == "before":
            db.add(Item(number=new.number))
        return None

    handled = await app.handle(list(range(MANY)))
    assert handled.letters == [b'{"number":42}']
    assert attempts.pop(42) == ({1} if when == "returned" else {1, 2, 3}), "what it returned no retry mends"
    assert set(map(tuple, attempts.values())) == {(1,)}
    assert await app.numbers() == [number for number in range(MANY) if number != 42]


async def test_a_row_that_the_database_refuses_fails_alone(app: App) -> None:
    """When only the common flush tells that a row is refused, the guilty message is found, and the others are saved
    with their first attempt."""
    attempts: set[int] = set()

    @app.bus.on(New, group="save")
    async def save(new: New, message: tidings.Message, db: AsyncSession) -> None:
        if new.number != 42:
            attempts.add(message.attempt)
        db.add(Item(number=7 if new.number == 42 else new.number))

    handled = await app.handle(list(range(MANY)))
    assert handled.letters == [b'{"number":42}']
    assert attempts == {1}
    assert await app.numbers() == [number for number in range(MANY) if number != 42]


@pytest.mark.parametrize("flush", [False, True])
async def test_refused_rows_are_told_from_the_others(app: App, flush: bool) -> None:
    """Among a hundred messages the database refuses the rows of three, wherever they stand: these are dead letters, and
    the others are saved without being run more than twice."""
    calls: dict[int, int] = {}
    bad = {3, 42, 43}

    @app.bus.on(New, group="save", retry=tidings.NEVER)
    async def save(new: New, db: AsyncSession) -> Saved:
        calls[new.number] = calls.get(new.number, 0) + 1
        row = Item(number=0 if new.number in bad else new.number)
        db.add(row)
        if flush:
            await db.flush()
        return Saved(number=new.number, id=row.id or 0)

    handled = await app.handle(list(range(MANY)))
    good = [number for number in range(MANY) if number not in bad]
    assert sorted(handled.letters) == [b'{"number":%d}' % number for number in sorted(bad, key=str)]
    assert await app.numbers() == sorted(saved.number for saved in handled.saved) == good
    assert max(calls[number] for number in good) <= 2


async def test_a_refused_flush_that_is_swallowed_saves_nothing_of_it(app: App) -> None:
    """A handler that catches the error of its flush and goes on as if it were saved fails all the same."""

    @app.bus.on(New, group="save", retry=tidings.NEVER)
    async def save(new: New, db: AsyncSession) -> None:
        db.add(Item(number=0 if new.number in {1, 30, 31} else new.number))
        try:
            await db.flush()
        except IntegrityError:
            return

    handled = await app.handle(list(range(60)))
    assert len(handled.letters) == 3
    assert await app.numbers() == [number for number in range(60) if number not in {1, 30, 31}]


async def test_retry_later_and_reject_concern_one_message(app: App) -> None:
    """`Reject` makes one dead letter and `RetryLater` brings one back, with the others committed beside."""

    @app.bus.on(New, group="save")
    async def save(new: New, message: tidings.Message, db: AsyncSession) -> None:
        db.add(Item(number=new.number))
        await db.flush()
        if new.number == 1:
            raise tidings.Reject("never")
        if new.number == 2 and message.attempt == 1:
            raise tidings.RetryLater(after=0)

    handled = await app.handle(list(range(20)))
    assert handled.letters == [b'{"number":1}']
    assert await app.numbers() == [number for number in range(20) if number != 1]


async def test_a_swallowed_error_commits_nothing_of_its_message(app: App) -> None:
    """A handler that catches the database's error inside a savepoint goes on; its message and all others are saved."""

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        try:
            async with db.begin_nested():
                await db.execute(insert(Item).values(number=0))
        except Exception:
            db.add(Item(number=new.number + 1))

    handled = await app.handle(list(range(20)))
    assert handled.letters == []
    assert len(await app.numbers()) == 20


async def test_a_message_that_was_handled_before_changes_nothing(app: App) -> None:
    """A redelivery among new messages is known by the inbox, and its handler is not called."""
    calls: list[int] = []

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        calls.append(new.number)
        db.add(Item(number=new.number))

    async with TestBus(app.bus) as t:
        await app.bus.publish_many([New(number=number) for number in range(20)])
        await t.settle(60)
        for entry in await app.bus.engine.read(["events.new"], 0, 20):
            t.store.group("save").add(entry)
        await app.bus.publish_many([New(number=number) for number in range(20, 40)])
        await t.settle(60)
    assert sorted(calls) == await app.numbers() == list(range(40))


async def test_each_has_a_transaction_of_its_own_if_asked(app: App) -> None:
    """With `commit="each"` there are as many commits as messages."""

    @app.bus.on(New, group="save", commit="each")
    async def save(new: New, db: AsyncSession) -> None:
        db.add(Item(number=new.number))

    handled = await app.handle(list(range(20)))
    assert handled.commits >= 20
    assert await app.numbers() == list(range(20))


async def test_who_waits_for_something_else_gets_a_transaction_of_its_own(app: App) -> None:
    """A handler that awaits anything besides its database holds no shared transaction open for long: after the first
    group each message has its own."""

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        await asyncio.sleep(0)
        db.add(Item(number=new.number))

    handled = await app.handle(list(range(60)))
    assert handled.commits >= 40
    assert await app.numbers() == list(range(60))


async def test_concurrency_bounds_the_connections(app: App) -> None:
    """A hundred messages and `concurrency=2` are never more than two transactions at a time."""
    open_now: set[Any] = set()
    most: list[int] = []

    @app.bus.on(New, group="save", concurrency=2)
    async def save(new: New, db: AsyncSession) -> None:
        connection = await db.connection()
        open_now.add(id(connection.sync_connection))
        most.append(len(open_now))
        await db.execute(insert(Item).values(number=new.number))
        open_now.discard(id(connection.sync_connection))

    await app.handle(list(range(MANY)))
    assert max(most) <= 2
    assert await app.numbers() == list(range(MANY))


async def test_plain_functions_share_a_commit_too(sync_app: App) -> None:
    """`def` handlers with a `Session` share commits and inserts; a flush of theirs is one at once."""
    flushing = itertools.count()

    @sync_app.bus.on(New, group="save")
    def save(new: New, db: Session) -> Saved | None:
        row = Item(number=new.number)
        db.add(row)
        if next(flushing) % 2:
            db.flush()
            return Saved(number=new.number, id=row.id)
        return None

    handled = await sync_app.handle(list(range(MANY)))
    assert await sync_app.numbers() == list(range(MANY))
    assert handled.commits < MANY / 4
    assert handled.saved


async def test_handlers_of_a_connection_share_a_commit_too(app: App) -> None:
    """Handlers that take an `AsyncConnection` share commits; one that fails fails alone."""

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncConnection) -> None:
        await db.execute(insert(Item).values(number=new.number))
        if new.number == 3:
            raise ValueError

    handled = await app.handle(list(range(MANY)))
    assert handled.letters == [b'{"number":3}']
    assert len(await app.numbers()) == MANY - 1
    assert handled.commits < MANY / 3


async def test_a_session_is_what_it_says(app: App) -> None:
    """What a handler gets is the session class it asked for; `in`, `info` and refused calls work as in a transaction
    of its own."""
    seen: list[str] = []

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        assert isinstance(db, AsyncSession)
        row = Item(number=new.number)
        db.add(row)
        if new.number % 4 == 1:
            assert row in db
            assert list(db.new) == [row]
        if new.number % 4 == 2:
            db.info["note"] = "mine"
        if new.number % 4 == 3:
            with pytest.raises(tidings.ConfigError, match="the worker commits"):
                await db.commit()
        seen.append(db.info.get("note", ""))

    handled = await app.handle(list(range(40)))
    assert handled.letters == []
    assert seen.count("mine") == 10
    assert await app.numbers() == list(range(40))


async def test_a_timeout_in_a_group_costs_one_message(app: App) -> None:
    """One handler that never ends: the group is rolled back, that message runs again by itself and times out there,
    and the others are saved with their first attempt."""
    attempts: set[int] = set()

    @app.bus.on(New, group="save", timeout=5, retry=tidings.RetryPolicy(attempts=1))
    async def save(new: New, message: tidings.Message, db: AsyncSession) -> None:
        if new.number == 5:
            await db.execute(select(1))
            await asyncio.Event().wait()
        attempts.add(message.attempt)
        db.add(Item(number=new.number))

    async with TestBus(app.bus) as t:
        await app.bus.publish_many([New(number=number) for number in range(20)])
        while not (letters := await t.dead_letters()):
            await asyncio.sleep(0.01)
            await t.clock.advance(1)
        await t.settle(60)
    assert [letter.reason for letter in letters] == ["timeout"]
    assert attempts == {1}
    assert await app.numbers() == [number for number in range(20) if number != 5]


async def test_a_worker_that_stops_hands_back_what_it_has_not_finished(app: App) -> None:
    """Stopping in the middle of a group: what is not committed is handed back at once, nothing counts as an attempt,
    and the next worker handles the rest."""
    begun = asyncio.Event()
    attempts: set[int] = set()
    hold = True

    @app.bus.on(New, group="save")
    async def save(new: New, message: tidings.Message, db: AsyncSession) -> None:
        attempts.add(message.attempt)
        await db.execute(insert(Item).values(number=new.number))
        if hold and new.number == 3:
            begun.set()
            await asyncio.Event().wait()

    async with TestBus(app.bus) as t:
        await app.bus.publish_many([New(number=number) for number in range(20)])
        await begun.wait()
        assert t.store.group("save") is not None
    assert await app.numbers() == []
    hold = False
    await app.handle(list(range(100, 120)))
    assert attempts == {1}


@pytest.mark.parametrize("asks", ["adds", "flushes", "reads"])
async def test_a_group_leaves_nothing_to_the_garbage_collector(app: App, asks: str) -> None:
    """A handler's session is gone with its transaction, without a collection: those of thousands of messages, waiting
    for one, would cost the worker a third of its time."""
    sessions: list[weakref.ref[AsyncSession]] = []

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        sessions.append(weakref.ref(db))
        if asks == "reads":
            await db.scalar(select(func.count()).select_from(Item))
        db.add(Item(number=new.number))
        if asks == "flushes":
            await db.flush()

    gc.collect()  # what other tests have left
    gc.disable()
    try:
        await app.handle(list(range(MANY)))
        left = [session for session in sessions if session() is not None]
        members = [each for each in gc.get_objects() if type(each) is SessionMember]
    finally:
        gc.enable()
    assert len(sessions) >= MANY
    assert (left, members) == ([], [])


async def test_a_task_that_a_handler_leaves_behind_has_no_session(app: App) -> None:
    """What it would add belongs to no message any more: it is refused, and not lost without a word."""
    sessions: list[AsyncSession] = []

    @app.bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        sessions.append(db)
        db.add(Item(number=new.number))

    await app.handle([1, 2, 3])
    for session in sessions[-2:]:
        with pytest.raises(tidings.ConfigError, match="a session of its own"):
            session.add(Item(number=4))
        with pytest.raises(tidings.ConfigError, match="a session of its own"):
            await session.execute(select(Item))
    assert await app.numbers() == [1, 2, 3]


async def test_a_batch_with_a_transaction_commits_once(app: App) -> None:
    """A batch handler writes with one statement; rows, marks and follow-ups of all but the failed message come with
    one commit, and a redelivery is left out of later batches."""
    seen: list[int] = []

    @app.bus.on(New, group="save", retry=tidings.NEVER)
    async def save(batch: tidings.Batch[New], db: AsyncSession) -> None:
        good = []
        for index, new in enumerate(batch):
            seen.append(new.number)
            if new.number == 5:
                batch.fail(index, ValueError("five"))
                continue
            good.append({"number": new.number})
            batch.follow(index, Saved(number=new.number, id=0))
        if good:
            await db.execute(insert(Item), good)

    async with TestBus(app.bus) as t:
        app.commits = 0
        await app.bus.publish_many([New(number=number) for number in range(MANY)])
        await t.settle(60)
        assert app.commits < MANY / 4
        for entry in await app.bus.engine.read(["events.new"], 0, MANY):
            if entry.body != b'{"number":5}':
                t.store.group("save").add(entry)
        await t.settle(60)
        saved = await t.published("events.saved")
        assert [letter.entry.body for letter in await t.dead_letters()] == [b'{"number":5}']
    expected = [number for number in range(MANY) if number != 5]
    assert await app.numbers() == expected
    assert sorted(message.data["number"] for message in saved) == expected
    assert len(seen) == MANY


async def test_one_poison_in_a_batch_is_found_by_halves(app: App) -> None:
    """A batch of 256 that raises is tried again in halves: 17 calls find the one that is to blame, the others are saved
    once and lose no attempt; a later batch does not contain it."""
    sizes: list[int] = []
    attempts: set[tuple[bool, int]] = set()

    @app.bus.on(New, group="save")
    async def save(batch: tidings.Batch[New], db: AsyncSession) -> None:
        sizes.append(len(batch))
        attempts.update((message.data.number == 200, message.attempt) for message in batch.messages)
        await db.execute(insert(Item), [{"number": new.number} for new in batch])
        if any(new.number == 200 for new in batch):
            raise ValueError("two hundred")

    handled = await app.handle(list(range(256)))
    assert handled.letters == [b'{"number":200}']
    assert await app.numbers() == [number for number in range(256) if number != 200]
    assert attempts == {(False, 1), (True, 1), (True, 2), (True, 3)}
    assert sizes[:3] == [256, 128, 128]
    assert len(sizes) == 17 + 2  # its two retries


async def test_many_poisons_in_a_batch_are_found_one_by_one(app: App) -> None:
    """Where nearly all fail, halving would double the calls: after 32 that failed each message is tried by itself."""
    sizes: list[int] = []

    @app.bus.on(New, group="save", retry=tidings.NEVER)
    async def save(batch: tidings.Batch[New], db: AsyncSession) -> None:
        sizes.append(len(batch))
        await db.execute(insert(Item), [{"number": new.number} for new in batch])
        if any(new.number != 200 for new in batch):
            raise ValueError("nearly all")

    handled = await app.handle(list(range(256)))
    assert len(handled.letters) == 255
    assert await app.numbers() == [200]
    assert sum(size > 1 for size in sizes) <= 2 * 32
    assert sizes.count(1) == 256


async def test_a_refused_row_in_a_batch_is_found(app: App) -> None:
    """A statement that the database refuses rolls the batch back; singly, only the guilty message fails."""

    @app.bus.on(New, group="save", retry=tidings.NEVER)
    async def save(batch: tidings.Batch[New], db: AsyncSession) -> None:
        await db.execute(insert(Item), [{"number": 7 if new.number == 42 else new.number} for new in batch])

    handled = await app.handle(list(range(60)))
    assert handled.letters == [b'{"number":42}']
    assert await app.numbers() == [number for number in range(60) if number != 42]


async def test_three_handlers_are_three_connections(postgresql: Place) -> None:
    """Three hundred clients post three thousand events at once, and three workers save them all: never more than three
    transactions of the handler are open, whatever the number of clients. The relay's own are counted apart."""
    clock = SystemClock()
    store = MemoryStore(clock)
    apps = [App(postgresql, sync=False) for _ in range(3)]
    for app in apps:

        @app.bus.on(New, group="save")
        async def save(new: New, db: AsyncSession) -> None:
            await db.execute(text("SET LOCAL application_name = 'save-handler'"))
            db.add(Item(number=new.number))

    most, looks = 0, 0
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'save-handler'"

    async def post(bus: tidings.Bus, client: int) -> None:
        for number in range(10):
            await bus.publish(New(number=10 * client + number))

    async with AsyncExitStack() as stack:
        await apps[0].start()
        running = []
        for app in apps:
            engine = MemoryEngine(store)
            await engine.open()
            stack.push_async_callback(app.stop)
            stack.push_async_callback(engine.close)
            running.append(await stack.enter_async_context(attached(app.bus, engine, clock)))
            await running[-1].work()
        watching = postgresql.engine(isolation_level="AUTOCOMMIT")
        stack.push_async_callback(watching.dispose)
        watcher = await stack.enter_async_context(watching.connect())
        clients = [asyncio.create_task(post(apps[client % 3].bus, client)) for client in range(300)]
        while (await apps[0].rows(select(func.count()).select_from(Item)))[0][0] < 3000:
            most = max(most, (await watcher.execute(text(query))).scalar_one())
            looks += 1
        await asyncio.gather(*clients)
        assert await apps[0].numbers() == list(range(3000))
    assert 1 <= most <= 3
    assert looks > 3
