"""What becomes of a message in its handler: outcomes, follow-ups, time limits, threads and transactions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import tidings
from tidings.engine import DeadLetter
from tidings.retry import NEVER
from tidings.testing import TestBus

AT_ONCE = tidings.RetryPolicy(attempts=3, first=0, most=0)


class New(tidings.Event, subject="events.new"):
    item: str = ""


class Saved(tidings.Event, subject="events.saved"):
    item: str = ""


class Indexed(tidings.Event, subject="events.indexed"):
    item: str = ""


class Fragile(tidings.Event, subject="events.fragile"):
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise KeyError("of its own")


@tidings.event("events.model")
class Model(BaseModel):
    n: int


@tidings.event("events.data")
@dataclass
class Data:
    n: int


class Client:
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Row(DeclarativeBase):
    pass


class Item(Row):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def new_bus(**more: Any) -> tidings.Bus:
    return tidings.Bus("todo", settings=tidings.Settings(retry=AT_ONCE, timeout=60), **more)


async def publish(bus: tidings.Bus, *events: Any) -> TestBus:
    """Run the bus until everything the events lead to has been handled."""
    async with TestBus(bus) as t:
        await bus.publish_many(events)
        await t.settle()
    return t


async def items(t: TestBus, subject: str) -> list[str]:
    """The field `item` of everything stored on the subject."""
    return [msgspec.json.decode(m.body)["item"] for m in await t.published(subject)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def died(bus: tidings.Bus, *events: Any) -> list[DeadLetter]:
    async with TestBus(bus) as t:
        await bus.publish_many(events)
        await t.settle()
        return await t.dead_letters()


# What a handler is given


async def test_a_handler_is_given_event_and_message() -> None:
    """The event as its class, the message with the same data, id, group and attempt."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message[New]) -> None:
        seen.append((new, m.data, m.subject, m.group, m.attempt, m.position, m.source, m.id))

    async with TestBus(bus) as t:
        receipt = await bus.publish(New("x"))
        await t.settle()
    assert seen == [(New("x"), New("x"), "events.new", "g", 1, 1, "todo", receipt.id)]


@pytest.mark.parametrize("value", [Model(n=1), Data(1)])
async def test_own_classes_arrive_as_themselves(value: Any) -> None:
    """Pydantic models and dataclasses are handled like events of our own."""
    bus, seen = new_bus(), []

    async def handle(body: Any) -> None:
        seen.append(body)

    handle.__annotations__["body"] = type(value)
    bus.on(type(value), group="g")(handle)
    await publish(bus, value)
    assert seen == [value]


async def test_a_bare_message_behind_a_class_is_typed() -> None:
    """Registered with a class, a bare `Message` has data of it; behind a wildcard it has plain values."""
    bus, seen = new_bus(), []

    @bus.on(New, group="typed")
    async def typed(m: tidings.Message) -> None:
        seen.append(m.data)

    @bus.on("events.>", group="plain")
    async def plain(m: tidings.Message) -> None:
        seen.append(m.data)

    await publish(bus, New("x"))
    assert sorted(seen, key=str) == sorted([New("x"), {"item": "x"}], key=str)


async def test_a_dict_handler_needs_no_class() -> None:
    """A subject and a dict are enough on both sides."""
    bus, seen = new_bus(), []

    @bus.on("events.plain.*", group="g")
    async def handle(body: dict[str, int]) -> None:
        seen.append(body)

    async with TestBus(bus) as t:
        await bus.publish("events.plain.a", {"n": 1})
        await bus.publish("events.plain.b", {"n": "no number"})
        await t.settle()
        assert [d.reason for d in await t.dead_letters()] == ["invalid"]
    assert seen == [{"n": 1}]


async def test_a_union_takes_each_subject_as_its_class() -> None:
    """The subject decides the class; a subject of neither is a dead letter and never a loop."""
    bus, seen = new_bus(), []

    @bus.on("events.*", group="g")
    async def handle(event: New | Saved) -> None:
        seen.append(event)

    letters = await died(bus, New("a"), Saved("b"), Indexed("c"))
    assert sorted(seen, key=repr) == [New("a"), Saved("b")]
    assert [(d.reason, d.entry.subject) for d in letters] == [("unknown_type", "events.indexed")]


async def test_providers_live_for_one_message() -> None:
    """Generators are entered before the handler and closed once after it, also when it fails."""
    bus, said = new_bus(), []

    @bus.provide
    async def client() -> AsyncIterator[Client]:
        said.append("open")
        try:
            yield Client()
        except ValueError:
            said.append("failed")
            raise
        finally:
            said.append("close")

    @bus.provide
    def number() -> Iterator[float]:
        said.append("one")
        yield 1.5
        said.append("two")

    @bus.on(New, group="g", retry=NEVER)
    async def handle(new: New, client: Client, number: float) -> None:
        said.append(f"{new.item} {number}")
        if new.item == "bad":
            raise ValueError

    await publish(bus, New("good"))
    assert said == ["open", "one", "good 1.5", "two", "close"]
    said.clear()
    await publish(bus, New("bad"))
    assert said == ["open", "one", "bad 1.5", "failed", "close"]


async def test_a_provider_that_fails_is_an_attempt() -> None:
    """The handler is not called, and the message retried like after an error of its own."""
    bus, calls = new_bus(), []

    @bus.provide
    async def client() -> Client:
        calls.append("provider")
        raise ConnectionError("away")

    @bus.on(New, group="g")
    async def handle(new: New, client: Client) -> None:
        calls.append("handler")

    (letter,) = await died(bus, New())
    assert calls == ["provider"] * 3
    assert (letter.failure.error, letter.attempts) == ("ConnectionError", 3)


# Outcomes


async def test_a_failing_message_is_retried_and_then_dies_whole() -> None:
    """After all attempts the dead letter has the original bytes and headers, the error, its traceback and handler."""
    bus, attempts = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> None:
        attempts.append(m.attempt)
        raise ValueError("bad item")

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        await t.settle()
        (letter,) = await t.dead_letters()
        (stored,) = await t.published()
    assert attempts == [1, 2, 3]
    assert (letter.reason, letter.attempts, letter.group) == ("handler_error", 3, "g")
    assert (letter.entry.body, dict(letter.entry.headers)) == (stored.body, dict(stored._headers))
    failure = letter.failure
    assert (failure.error, failure.message, failure.version) == ("ValueError", "bad item", tidings.__version__)
    assert failure.handler.endswith("handle")
    assert failure.host
    assert 'raise ValueError("bad item")' in failure.traceback


async def test_a_failing_message_harms_no_other() -> None:
    """Messages behind a poisonous one are handled while it waits for its retry."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g", concurrency=1, retry=tidings.RetryPolicy(first=60, most=60))
    async def handle(new: New) -> None:
        if new.item == "poison":
            raise ValueError
        seen.append(new.item)

    await publish(bus, New("poison"), *(New(str(n)) for n in range(20)))
    assert seen == [str(n) for n in range(20)]


async def test_reject_is_a_dead_letter_at_once() -> None:
    """No retry, the reason in the dead letter."""
    bus = new_bus()

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        raise tidings.Reject("no such user")

    (letter,) = await died(bus, New())
    assert (letter.reason, letter.failure.message, letter.attempts) == ("rejected", "no such user", 1)


async def test_retry_later_says_when_and_counts() -> None:
    """The message comes back after the time the handler chose, and ends as a dead letter if that never helps."""
    bus, attempts = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> None:
        attempts.append(m.attempt)
        raise tidings.RetryLater("not ready", after=30)

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert attempts == [1]
        await t.clock.advance(29)
        await t.settle()
        assert attempts == [1]
        await t.clock.advance(2)
        await t.settle()
        assert attempts == [1, 2]
        await t.clock.advance(31)
        await t.settle()
        assert [(d.reason, d.attempts) for d in await t.dead_letters()] == [("handler_error", 3)]


async def test_a_policy_per_exception() -> None:
    """`NEVER` for one exception sends it to the dead letters at once, others are retried."""
    bus, calls = new_bus(), []

    @bus.on(New, group="g", retry=tidings.RetryPolicy(attempts=2, first=0, most=0, per={LookupError: NEVER}))
    async def handle(new: New) -> None:
        calls.append(new.item)
        raise KeyError if new.item == "key" else ValueError

    await publish(bus, New("key"))
    await publish(bus, New("value"))
    assert calls == ["key", "value", "value"]


async def test_redrive_starts_the_attempts_again() -> None:
    """A redriven message has its first attempt again, under the same id, and only in the group that failed."""
    bus, broken, seen = new_bus(), [True], []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> None:
        if broken:
            raise ValueError
        seen.append((m.id, m.attempt))

    @bus.on(New, group="other")
    async def other(new: New) -> None:
        seen.append("other")

    async with TestBus(bus) as t:
        receipt = await bus.publish(New())
        await t.settle()
        broken.clear()
        assert await t.redrive("g") == 1
        await t.settle()
        assert seen == ["other", (receipt.id, 1)]
        assert await t.dead_letters() == []
        assert await t.redrive("g") == 0


@pytest.mark.parametrize("error", [Unprintable(), ValueError("\ud800 \x00"), ValueError("x" * 100_000)])
async def test_any_exception_becomes_a_storable_dead_letter(error: Exception) -> None:
    """Errors without a text, with half a surrogate pair, or of any length end as a dead letter and not as a loop."""
    bus = new_bus()

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        raise error

    (letter,) = await died(bus, New())
    assert letter.attempts == 3
    assert len(msgspec.json.encode(letter.failure)) < 20_000
    assert "\x00" not in letter.failure.message + letter.failure.traceback


async def test_a_cancelled_error_of_the_handlers_own_is_a_failure() -> None:
    """A handler whose inner task was cancelled fails like any other: no hot loop, no silence, attempts counted."""
    bus, calls = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        calls.append(1)
        inner = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    (letter,) = await died(bus, New())
    assert (len(calls), letter.reason, letter.failure.error) == (3, "handler_error", "CancelledError")
    assert "the worker had not cancelled it" in letter.failure.message


async def test_a_thread_that_raises_cancelled_error_fails() -> None:
    """The same from a plain `def` handler."""
    bus = new_bus()

    @bus.on(New, group="g")
    def handle(new: New) -> None:
        raise asyncio.CancelledError

    (letter,) = await died(bus, New())
    assert (letter.failure.error, letter.attempts) == ("CancelledError", 3)


async def test_a_handler_that_cancels_its_own_task_is_no_hot_loop() -> None:
    """That looks like a stop of the worker: the message is handed back, but not at once."""
    bus, calls = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        calls.append(1)
        if len(calls) < 3:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert len(calls) == 1
        await t.clock.advance(1.1)
        await t.settle()
        await t.clock.advance(1.1)
        await t.settle()
        assert len(calls) == 3
        assert await t.dead_letters() == []


async def test_stop_iteration_from_a_thread_is_an_error() -> None:
    """`next()` on something empty fails the message; it does not leave the worker waiting for its thread."""
    bus = new_bus()

    @bus.on(New, group="g")
    def handle(new: New) -> None:
        next(iter(()))

    (letter,) = await died(bus, New())
    assert (letter.failure.error, letter.reason) == ("RuntimeError", "handler_error")
    assert "StopIteration" in letter.failure.message


async def test_an_engine_that_is_full_burns_no_attempt() -> None:
    """Follow-ups that cannot be stored now are nobody's fault: the message waits and gets through later."""
    bus, calls = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> Saved:
        calls.append(m.attempt)
        if len(calls) < 5:
            raise tidings.StoreFull("no space")
        return Saved(new.item)

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        for _ in range(6):
            await t.settle()
            await t.clock.advance(1.1)
        assert calls == [1] * 5
        assert await items(t, "events.saved") == ["x"]


# Arrival


@pytest.mark.parametrize(
    ("subject", "body", "reason"),
    [
        ("events.new", b"\xff\xfe", "undecodable"),
        ("events.new", b"[" * 1000, "undecodable"),
        ("events.new", b'{"item": 5}', "invalid"),
        ("events.new", b"", "undecodable"),
        ("events.fragile", b'{"n": -1}', "invalid"),
    ],
)
async def test_what_cannot_be_read_dies_with_its_bytes(subject: str, body: bytes, reason: str) -> None:
    """Nothing that arrives stops a worker or is dropped: the handler never runs, the dead letter has the bytes."""
    bus, calls = new_bus(), []

    @bus.on(New, Fragile, group="g")
    async def handle(event: New | Fragile) -> None:
        calls.append(event)

    async with TestBus(bus) as t:
        message = tidings.message.compose(subject, body, id="i", ce_type=subject, source="x", now=0)
        await bus.engine.publish([message])
        await bus.publish(New("behind"))
        await t.settle()
        (letter,) = await t.dead_letters()
    assert (letter.reason, letter.entry.body, letter.attempts) == (reason, body, 0)
    assert calls == [New("behind")]


async def test_a_message_without_headers_is_handled() -> None:
    """`nats pub events.new '{"item":"x"}'` from any client: type by subject, id by its place."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> Saved:
        seen.append((new.item, m.id, m.correlation_id, m.source))
        return Saved()

    async with TestBus(bus) as t:
        await bus.engine.publish([tidings.engine.Outgoing("events.new", b'{"item":"x"}', {}, "whatever")])
        await t.settle()
        (saved,) = await t.published("events.saved")
    assert seen == [("x", "tidings-1", "tidings-1", None)]
    assert saved.causation_id == "tidings-1"


async def test_an_unknown_version_is_not_guessed() -> None:
    """A message of version 2 is not read as version 1."""
    bus = new_bus()

    @bus.on(New, group="g")
    async def handle(new: New) -> None: ...

    async with TestBus(bus) as t:
        headers = {"ce-id": "i", "ce-type": "events.new.v2"}
        await bus.engine.publish([tidings.engine.Outgoing("events.new", b'{"item":"x"}', headers, "i")])
        await t.settle()
        (letter,) = await t.dead_letters()
    assert letter.reason == "unknown_type"
    assert "events.new.v2" in letter.failure.message


# Follow-ups


async def test_returned_events_are_published_with_their_chain() -> None:
    """Correlation is the first message's id over three steps, causation the direct cause's."""
    bus = new_bus()

    @bus.on(New, group="save")
    async def save(new: New) -> Saved:
        return Saved(new.item)

    @bus.on(Saved, group="index")
    def index(saved: Saved) -> list[Indexed]:
        return [Indexed(saved.item), Indexed(saved.item * 2)]

    async with TestBus(bus) as t:
        receipt = await bus.publish(New("x"))
        await t.settle()
        new, saved, one, two = await t.published()
    assert [new.id, saved.causation_id] == [receipt.id, new.id]
    assert {m.correlation_id for m in (new, saved, one, two)} == {receipt.id}
    assert (one.causation_id, two.causation_id) == (saved.id, saved.id)
    assert (one.data, two.data) == (Indexed("x"), Indexed("xx"))


async def test_a_rerun_stores_its_follow_ups_once() -> None:
    """A handler whose ack was lost runs again: what it returns has the same ids, different places different ones."""
    bus, runs = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> list[Saved]:
        runs.append(m.id)
        if len(runs) == 1:
            await bus.publish_many([])  # a handler may publish nothing
        return [Saved("a"), Saved("a"), Saved("b")]

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        await t.settle()
        first = [m.id for m in await t.published("events.saved")]
        group = t.store.group("g")
        group.add((await bus.engine.read(["events.new"], 0, 1))[0])  # as after an ack that never arrived
        await t.settle()
        assert [m.id for m in await t.published("events.saved")] == first
    assert len(runs) == 2
    assert len(set(first)) == 3


async def test_each_group_has_follow_ups_of_its_own() -> None:
    """Two groups that return the same event for one message publish two."""
    bus = new_bus()

    @bus.on(New, group="one")
    async def one(new: New) -> Saved:
        return Saved()

    @bus.on(New, group="two")
    async def two(new: New) -> Saved:
        return Saved()

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert len({m.id for m in await t.published("events.saved")}) == 2


@pytest.mark.parametrize("result", [3, "events.saved", {"item": "x"}, [3], [[Saved()]], {Saved()}, Saved])
async def test_a_handler_returns_events_or_nothing(result: Any) -> None:
    """Anything else is a mistake that names the handler and what it returned; nothing is published."""
    bus = new_bus()

    @bus.on(New, group="g", retry=NEVER)
    async def handle(new: New) -> Any:
        return result

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        (letter,) = await t.dead_letters()
        assert await t.published("events.saved") == []
    assert letter.failure.error == "TypeError"
    assert "returns None, an event or a list of events" in letter.failure.message


@pytest.mark.parametrize("result", [None, [], ()])
async def test_nothing_is_a_fine_result(result: Any) -> None:
    """None and empty lists publish nothing and succeed."""
    bus = new_bus()

    @bus.on(New, group="g")
    async def handle(new: New) -> Any:
        return result

    assert await died(bus, New()) == []


async def test_follow_ups_of_a_failed_handler_do_not_leave() -> None:
    """A follow-up that is refused takes the others back with it."""
    bus = new_bus()

    @bus.on(New, group="g", retry=NEVER)
    async def handle(new: New) -> list[Saved]:
        return [Saved("fine"), Saved("\x00")]

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert await t.published("events.saved") == []
        assert [d.failure.error for d in await t.dead_letters()] == ["InvalidMessage"]


async def test_what_a_handler_publishes_is_caused_by_its_message() -> None:
    """Also from threads, with `publish_sync`, and from tasks the handler starts."""
    bus = new_bus()

    @bus.on(New, group="async")
    async def one(new: New) -> None:
        await asyncio.create_task(bus.publish(Saved("task")))

    @bus.on(New, group="thread")
    def two(new: New) -> None:
        bus.publish_sync(Saved("thread"))

    async with TestBus(bus) as t:
        receipt = await bus.publish(New())
        await t.settle()
        saved = await t.published("events.saved")
    assert sorted(m.data["item"] for m in saved) == ["task", "thread"]
    assert {m.causation_id for m in saved} == {receipt.id}
    assert tidings.message.current_message.get() is None


# Time limits


async def test_a_handler_over_its_time_is_cancelled_and_retried() -> None:
    """The limit is measured by the clock, the reason is `timeout`, and the handler hears of it."""
    bus, heard, begun = new_bus(), [], []

    @bus.on(New, group="g", timeout=5, retry=tidings.RetryPolicy(attempts=2, first=0, most=0))
    async def handle(new: New) -> None:
        begun.append(new)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async with TestBus(bus) as t:
        await bus.publish(New())
        for attempt in (1, 2):
            await until(lambda: len(begun) == attempt)  # noqa: B023
            await t.clock.advance(5.1)
        await t.settle()
        (letter,) = await t.dead_letters()
    assert heard == ["cancelled"] * 2
    assert (letter.reason, letter.attempts, letter.failure.error) == ("timeout", 2, "TimeoutError")
    assert "after 5 s" in letter.failure.message


async def test_a_timeout_error_of_the_handlers_own_is_not_ours() -> None:
    """A dependency that timed out is a handler error."""
    bus = new_bus()

    @bus.on(New, group="g", retry=NEVER)
    async def handle(new: New) -> None:
        raise TimeoutError("the mail server")

    (letter,) = await died(bus, New())
    assert (letter.reason, letter.failure.message) == ("handler_error", "the mail server")


async def test_an_inner_time_limit_leaves_ours_alone() -> None:
    """`asyncio.timeout` and `wait_for` inside a handler work as everywhere else."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0)
        seen.append(new.item)

    assert await died(bus, New("x")) == []
    assert seen == ["x"]


async def test_a_thread_over_its_time_is_retried_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The thread cannot be stopped, and the log says so; the message goes on meanwhile."""
    bus, go, runs = new_bus(), threading.Event(), itertools.count(1)

    @bus.on(New, group="g", timeout=5, concurrency=2)
    def handle(new: New) -> None:
        if next(runs) == 1:
            go.wait(20)

    try:
        async with TestBus(bus) as t:
            await bus.publish(New())
            await t.clock.advance(1)
            await t.clock.advance(5)
            await t.settle()
            assert await t.dead_letters() == []
            assert next(runs) == 3
    finally:
        go.set()
    assert "a thread cannot be stopped: " in caplog.text


# Transactions


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
                await attempt()  # type: ignore[no-untyped-call]
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
