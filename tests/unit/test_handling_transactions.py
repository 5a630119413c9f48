"""Handlers with a transaction: effects, inbox and follow-ups together or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, create_engine, event, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import tidings
from handlers import Indexed, New, Saved, items, new_bus
from tidings.testing import TestBus


class Row(DeclarativeBase):
    pass


class Item(Row):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class World:
    """A SQLite database with one table, as async and as sync engine."""

    def __init__(self, file: Path) -> None:
        self.sync: Engine = create_engine(f"sqlite:///{file}")
        self.engine: AsyncEngine = create_async_engine(f"sqlite+aiosqlite:///{file}")
        self.sessions = async_sessionmaker(self.engine)
        self.sync_sessions = sessionmaker(self.sync)
        Row.metadata.create_all(self.sync)

    def items(self) -> list[str]:
        with self.sync.connect() as connection:
            return list(connection.execute(select(Item.text).order_by(Item.id)).scalars())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "todo.db")
    yield world
    await world.engine.dispose()
    world.sync.dispose()


async def test_effects_and_follow_ups_leave_together(world: World) -> None:
    """A handler with a session writes, returns, and finds its row and its event afterwards."""
    bus = new_bus(sessions=world.sessions)

    @bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> Saved:
        db.add(Item(text=new.item))
        return Saved(new.item)

    async with TestBus(bus) as t:
        receipt = await bus.publish(New("x"))
        await t.settle()
        (saved,) = await t.published("events.saved")
    assert world.items() == ["x"]
    assert (saved.data, saved.causation_id) == (Saved("x"), receipt.id)


async def test_a_failed_transaction_leaves_nothing(world: World) -> None:
    """Rows and follow-ups of a failed attempt are gone; the successful one's are there once."""
    bus = new_bus(sessions=world.sessions)

    @bus.on(New, group="save")
    async def save(new: New, db: AsyncSession, m: tidings.Message) -> Saved:
        db.add(Item(text=f"attempt {m.attempt}"))
        await db.flush()
        await bus.outbox(db).publish(Indexed(f"attempt {m.attempt}"))
        if m.attempt < 3:
            raise ValueError
        return Saved()

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        await t.settle()
        assert world.items() == ["attempt 3"]
        assert await items(t, "events.indexed") == ["attempt 3"]
        assert len(await t.published("events.saved")) == 1


@pytest.mark.parametrize("commit", ["group", "each"])
async def test_a_handler_that_cancels_its_own_task_fails_alone(world: World, commit: Literal["group", "each"]) -> None:
    """Nothing of it is committed, its attempts count, and those it shared a transaction with are handled."""
    bus = new_bus(sessions=world.sessions)

    @bus.on(New, group="save", commit=commit)
    async def save(new: New, db: AsyncSession) -> None:
        db.add(Item(text=new.item))
        await db.flush()
        if new.item == "1":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await db.flush()
            await asyncio.Event().wait()

    async with TestBus(bus) as t:
        await bus.publish_many([New(str(number)) for number in range(4)])
        await t.settle()
        [letter] = await t.dead_letters()
    assert (letter.attempts, letter.failure.error) == (3, "CancelledError")
    assert sorted(world.items()) == ["0", "2", "3"]


@pytest.mark.parametrize("commit", ["group", "each"])
async def test_a_handler_that_commits_as_sql_is_a_dead_letter(world: World, commit: Literal["group", "each"]) -> None:
    """At once, with nothing of it in the database; the messages beside it are handled."""
    bus, calls = new_bus(sessions=world.sessions), []

    @bus.on(New, group="save", commit=commit)
    async def save(new: New, db: AsyncSession) -> Saved:
        db.add(Item(text=new.item))
        await db.flush()
        if new.item == "1":
            calls.append(new)
            await db.execute(text("COMMIT"))
            db.add(Item(text="behind"))
        return Saved(new.item)

    async with TestBus(bus) as t:
        await bus.publish_many([New(str(number)) for number in range(4)])
        await t.settle()
        [letter] = await t.dead_letters()
        assert sorted(await items(t, "events.saved")) == ["0", "2", "3"]
    assert (letter.failure.error, letter.attempts) == ("ConfigError", 1)
    assert "begin_nested()" in letter.failure.message
    assert sorted(world.items()) == ["0", "2", "3"]


async def test_a_redelivery_changes_nothing(world: World) -> None:
    """The inbox knows a message whose ack was lost: the handler is not even called."""
    bus, calls = new_bus(sessions=world.sessions), []

    @bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> Saved:
        calls.append(new.item)
        db.add(Item(text=new.item))
        return Saved(new.item)

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        await t.settle()
        t.store.group("save").add((await bus.engine.read(["events.new"], 0, 1))[0])
        await t.settle()
        assert len(await t.published("events.saved")) == 1
    assert calls == ["x"]
    assert world.items() == ["x"]


async def test_publish_inside_a_transaction_is_refused(world: World) -> None:
    """It would leave even if the transaction rolls back; the text names three ways, and `now=True` is one of them."""
    bus, errors = new_bus(sessions=world.sessions), []

    @bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> None:
        for attempt in (lambda: bus.publish(Saved()), lambda: bus.publish_many([Saved()])):
            with pytest.raises(tidings.PublishInTransaction) as caught:
                await attempt()
            errors.append(str(caught.value))
        await bus.publish(Saved("at once"), now=True)
        raise tidings.Reject("rolled back")

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert await items(t, "events.saved") == ["at once"]
        await bus.publish(Saved("outside again"))
    assert len(errors) == 2
    assert all(word in errors[0] for word in ("Return", "bus.outbox", "now=True"))


async def test_publish_sync_inside_a_transaction_is_refused(world: World) -> None:
    """The same from a plain `def` handler's thread."""
    bus, refused = new_bus(sync_sessions=world.sync_sessions), []

    @bus.on(New, group="save")
    def save(new: New, db: Session) -> Saved:
        db.add(Item(text=new.item))
        try:
            bus.publish_sync(Saved("too early"))
        except tidings.PublishInTransaction:
            refused.append(new.item)
        return Saved("with the commit")

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        await t.settle()
        assert await items(t, "events.saved") == ["with the commit"]
    assert refused == ["x"]
    assert world.items() == ["x"]


async def test_a_lost_lease_commits_nothing(world: World) -> None:
    """A handler that ran past its lease may not commit: somebody else may have the message by now."""
    bus, runs = new_bus(sessions=world.sessions), []

    @bus.on(New, group="save")
    async def save(new: New, db: AsyncSession) -> Saved:
        runs.append(new.item)
        db.add(Item(text=f"run {len(runs)}"))
        if len(runs) == 1:
            t.store.group("save")._items[1].lease = None  # the engine has given it to nobody we know
            (delivery,) = t.bus.connected.worker._hands.held.values()  # type: ignore[union-attr]
            delivery.deadline = t.clock.monotonic()
        return Saved()

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.clock.advance(1)
        with contextlib.suppress(tidings.TidingsError):
            await t.settle(0.2)
        await t.clock.advance(31)
        await t.settle()
        assert world.items() == ["run 2"]
        assert len(await t.published("events.saved")) == 1


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_busy_database_burns_no_attempt(world: World, kind: str) -> None:
    """A lock held by somebody else is not the message's fault: it comes back with its first attempt."""
    bus, attempts, broken = new_bus(sessions=world.sessions, sync_sessions=world.sync_sessions), [], [True, True]

    def fail(*_: Any) -> None:
        if broken:
            broken.pop()
            raise locked()

    def locked() -> Exception:
        import sqlite3

        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        return error

    engine = world.engine.sync_engine if kind == "async" else world.sync
    event.listen(engine, "do_execute", lambda _c, statement, *_: fail() if "count(" in statement else None)

    async def save(new: New, db: AsyncSession, m: tidings.Message) -> None:
        attempts.append(m.attempt)
        await db.scalar(select(func.count(Item.id)))

    def save_sync(new: New, db: Session, m: tidings.Message) -> None:
        attempts.append(m.attempt)
        db.scalar(select(func.count(Item.id)))

    bus.on(New, group="save")(save if kind == "async" else save_sync)
    async with TestBus(bus) as t:
        await bus.publish(New())
        for _ in range(4):
            await t.settle()
            await t.clock.advance(1.1)
        await t.settle()
        assert await t.dead_letters() == []
    assert attempts == [1, 1, 1]


async def test_the_wrong_kind_of_session_raises_at_the_start(world: World) -> None:
    """A `Session` in an async handler, or the other way round, names the right one."""
    one = new_bus(sync_sessions=world.sync_sessions)

    @one.on(New, group="g")
    async def wrong(new: New, db: Session) -> None: ...

    with pytest.raises(tidings.ConfigError, match="an async handler takes an AsyncSession"):
        async with TestBus(one):
            pass
    two = new_bus(sessions=world.sessions)

    @two.on(New, group="g")
    def wrong_too(new: New, db: AsyncSession) -> None: ...

    with pytest.raises(tidings.ConfigError, match="a plain def handler takes a Session"):
        async with TestBus(two):
            pass
    assert two.connected is None
