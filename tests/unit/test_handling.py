"""What a handler is given, what arrives broken, and what becomes of what it returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

import tidings
from handlers import Indexed, New, Saved, died, new_bus, publish
from tidings.message import place_of
from tidings.retry import NEVER
from tidings.testing import TestBus


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

    async with TestBus(bus) as t:
        await bus.publish_many([New("a"), Saved("b"), Indexed("c")])
        await t.settle()
        await t.clock.advance(700)
        await t.settle()
        letters = await t.dead_letters()
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


async def test_handlers_of_one_name_are_told_apart() -> None:
    """A factory of handlers, or a name that is used twice: each is given what its own signature says."""
    bus, seen = new_bus(), []

    def listen(event: type, group: str) -> None:
        async def handle(event: Any) -> None:
            seen.append((group, event))

        handle.__annotations__["event"] = event
        bus.on(event, group=group)(handle)

    listen(New, "a")
    listen(Saved, "b")

    @bus.on(Indexed, group="c")
    async def handle(event: Indexed, message: tidings.Message) -> None:
        seen.append(("c", event))

    @bus.on(Indexed, group="d")  # type: ignore[no-redef]
    async def handle(event: Indexed) -> None:  # noqa: F811
        seen.append(("d", event))

    async with TestBus(bus) as t:
        for event in (New("x"), Saved(), Indexed()):
            await bus.publish(event)
        await t.settle()
        assert sorted(seen, key=lambda pair: pair[0]) == [
            ("a", New("x")),
            ("b", Saved()),
            ("c", Indexed()),
            ("d", Indexed()),
        ]


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
    ((item, id, correlation, source),) = seen
    assert (item, place_of(id, "tidings"), correlation, source) == ("x", 1, id, None)
    assert saved.causation_id == id


async def test_an_unknown_version_is_not_guessed() -> None:
    """A message of version 2 is not read as version 1."""
    bus = new_bus()

    @bus.on(New, group="g")
    async def handle(new: New) -> None: ...

    async with TestBus(bus) as t:
        headers = {"ce-id": "i", "ce-type": "events.new.v2"}
        await bus.engine.publish([tidings.engine.Outgoing("events.new", b'{"item":"x"}', headers, "i")])
        await t.settle()
        await t.clock.advance(700)
        await t.settle()
        (letter,) = await t.dead_letters()
    assert letter.reason == "unknown_type"
    assert "events.new.v2" in letter.failure.message


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
