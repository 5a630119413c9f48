"""The relay between a database's outbox and the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import tidings
from tidings.clock import ManualClock
from tidings.engine import Outgoing, Stored
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.outbox import Relay
from tidings.publisher import Publisher
from tidings.registry import Registry
from tidings.sql import SqlUnits
from tidings.testing import TestBus


class New(tidings.Event, subject="events.new"):
    item: str = ""


class Engine(MemoryEngine):
    """An engine that can be slow, away, or refuse a message."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.error: Exception | None = None
        self.refused = ""
        self.sent: list[str] = []

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        await self.open_gate.wait()
        if self.error is not None:
            raise self.error
        if any(message.id == self.refused for message in messages):
            raise tidings.TooLarge(2, 1)
        self.sent.extend(message.id for message in messages)
        return await super().publish(messages)


class Desk:
    """A SQLite outbox, an engine, and relays between them."""

    def __init__(self, file: Path) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.engine = Engine(self.store)
        self.database = create_async_engine(f"sqlite+aiosqlite:///{file}")
        self.sessions = async_sessionmaker(self.database)
        self.units = SqlUnits(self.sessions, clock=self.clock)
        self.publisher = Publisher(self.engine, Registry(), source="test", roots=["events.>"], clock=self.clock)

    def relay(self) -> Relay:
        return Relay(self.units, self.publisher, self.clock)

    async def staged(self, *items: str) -> list[Outgoing]:
        """Messages in the outbox of a committed transaction that nobody has sent yet."""
        messages = [self.publisher.compose(New(item), id=item) for item in items]
        async with self.sessions() as session, session.begin():
            await self.units.outbox(session).stage(messages)
        return messages

    async def rows(self) -> list[str]:
        async with self.sessions() as session:
            return list(
                (await session.execute(text("select message_id from tidings_outbox order by position"))).scalars()
            )


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path / "todo.db")
    await desk.engine.open()
    await desk.units.prepare()
    yield desk
    await desk.units.close()
    await desk.database.dispose()


@asynccontextmanager
async def started(relay: Relay) -> AsyncIterator[Relay]:
    relay.start()
    try:
        yield relay
    finally:
        async with asyncio.timeout(10):
            await relay.stop()


async def until(condition: Callable[[], Any], clock: ManualClock | None = None) -> None:
    """Wait for the condition, time going on meanwhile where a clock is given."""
    async with asyncio.timeout(10):
        while not (found := condition()) or (asyncio.iscoroutine(found) and not await found):
            if clock is not None:
                await clock.advance(1)
            await asyncio.sleep(0.001)


async def test_committed_messages_are_sent_and_taken_out(desk: Desk) -> None:
    """In their order, and the outbox is empty afterwards."""
    messages = await desk.staged("a", "b", "c")
    async with started(desk.relay()) as relay:
        relay.send_soon(messages)
        assert relay.busy
        await until(lambda: not relay.busy)
        assert desk.engine.sent == ["a", "b", "c"]
        assert await desk.rows() == []


async def test_what_a_crash_left_is_swept(desk: Desk) -> None:
    """A process that stopped between commit and sending leaves its messages to any relay."""
    await desk.staged("a", "b")
    async with started(desk.relay()):
        await until(lambda: len(desk.engine.sent) == 2, desk.clock)
        await until(lambda: no_rows(desk))


async def no_rows(desk: Desk) -> bool:
    return await desk.rows() == []


async def test_two_relays_share_the_leftovers(desk: Desk) -> None:
    """However many relays sweep, each message is stored once."""
    await desk.staged(*(f"{n:03}" for n in range(50)))
    async with started(desk.relay()), started(desk.relay()):
        await until(lambda: desk.store.stats().messages == 50, desk.clock)
        await until(lambda: no_rows(desk))
    assert desk.store.stats().messages == 50


@pytest.mark.parametrize(
    "error", [tidings.EngineUnavailable("away"), tidings.StoreFull("full"), RuntimeError("our own mistake")]
)
async def test_an_engine_that_fails_gets_them_later(desk: Desk, error: Exception) -> None:
    """Nothing is lost while the engine is away, and no error ends the relay."""
    desk.engine.error = error
    messages = await desk.staged("a", "b")
    async with started(desk.relay()) as relay:
        relay.send_soon(messages)
        await until(lambda: not relay.busy)
        assert await desk.rows() == ["a", "b"]
        desk.engine.error = None
        await until(lambda: len(desk.engine.sent) >= 2, desk.clock)
        await until(lambda: no_rows(desk))
    assert desk.store.stats().messages == 2


async def test_an_unconfirmed_batch_is_repeated_under_the_same_ids(desk: Desk) -> None:
    """The answer was lost, the messages were not: sending again stores nothing new."""
    real = desk.engine.publish

    async def unanswered(messages: Sequence[Outgoing]) -> list[Stored]:
        await real(messages)
        raise tidings.Unconfirmed("no answer")

    desk.engine.publish = unanswered  # type: ignore[method-assign]
    messages = await desk.staged("a")
    async with started(desk.relay()) as relay:
        relay.send_soon(messages)
        await until(lambda: not relay.busy)
        assert await desk.rows() == ["a"]
        desk.engine.publish = real  # type: ignore[method-assign]
        await until(lambda: len(desk.engine.sent) >= 2, desk.clock)
        await until(lambda: no_rows(desk))
    assert desk.store.stats().messages == 1


async def test_one_that_is_refused_holds_no_other_back(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A message this engine cannot store stays, is named in the log, and the others leave."""
    desk.engine.refused = "b"
    messages = await desk.staged("a", "b", "c")
    async with started(desk.relay()) as relay:
        relay.send_soon(messages)
        await until(lambda: not relay.busy)
        assert desk.engine.sent == ["a", "c"]
        assert await desk.rows() == ["b"]
    assert "message b on events.new cannot be sent" in caplog.text


async def test_stopping_waits_for_what_is_on_its_way(desk: Desk) -> None:
    """`stop` during a slow send neither spins nor forgets: it ends when the send has ended."""
    desk.engine.open_gate.clear()
    messages = await desk.staged("a", "b")
    relay = desk.relay()
    relay.start()
    relay.send_soon(messages[:1])
    await until(lambda: relay._sending.locked())
    relay.send_soon(messages[1:])
    stopping = asyncio.ensure_future(relay.stop())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not stopping.done()
    desk.engine.open_gate.set()
    async with asyncio.timeout(10):
        await stopping
    assert desk.engine.sent == ["a", "b"]
    assert await desk.rows() == []
    assert not relay.busy


async def test_stopping_while_the_engine_is_away_leaves_the_rest(desk: Desk) -> None:
    """What cannot be sent stays in the database for any relay; `stop` ends, twice if one likes."""
    desk.engine.error = tidings.EngineUnavailable("away")
    messages = await desk.staged("a")
    relay = desk.relay()
    relay.start()
    relay.send_soon(messages)
    async with asyncio.timeout(10):
        await relay.stop()
        await relay.stop()
    assert await desk.rows() == ["a"]


async def test_what_a_savepoint_took_back_is_not_sent(desk: Desk) -> None:
    """`look_soon` asks the database which of the messages are really committed."""
    async with started(desk.relay()) as relay:
        kept = await desk.staged("kept")
        gone = [desk.publisher.compose(New("gone"), id="gone")]
        relay.look_soon([*kept, *gone])
        await until(lambda: not relay.busy)
        assert desk.engine.sent == ["kept"]


async def test_an_application_publishes_with_its_own_transaction(tmp_path: Path) -> None:
    """`bus.outbox(session)`: after the commit, or not at all."""
    database = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'todo.db'}")
    sessions = async_sessionmaker(database)
    bus = tidings.Bus("todo", sessions=sessions)
    async with TestBus(bus) as t:
        async with sessions() as session, session.begin():
            receipt = await bus.outbox(session).publish(New("x"))
            assert receipt.position == 0
            assert await t.published() == []
        async with sessions() as session:
            await bus.outbox(session).publish(New("rolled back"))
            await session.rollback()
        async with asyncio.timeout(10):
            while not (found := await t.published()):
                await asyncio.sleep(0)
        await t.settle()
        assert [m.id for m in found] == [receipt.id]
        assert len(await t.published()) == 1
    await database.dispose()


async def test_an_outbox_needs_a_database() -> None:
    """A bus without sessions names the option, and a bad event is refused before it is written."""
    sync = create_engine("sqlite://")
    bus = tidings.Bus("todo")
    async with TestBus(bus):
        with pytest.raises(tidings.ConfigError, match=r"Bus\(sessions=…\)"):
            await bus.outbox(object()).publish(New())
    sync.dispose()
