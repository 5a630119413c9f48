"""Versions of event types: what is brought up to date, what waits for a worker that knows it, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import tidings
from handlers import AT_ONCE
from tidings.clock import ManualClock
from tidings.engine import DeadLetter, Entry, Outgoing
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.errors import DecodeError
from tidings.testing import TestBus, attached
from tidings.versions import Patience


class Price(tidings.Event, subject="events.price", version=3):
    cents: int
    currency: str


class Earlier(tidings.Event, subject="events.price", version=2):
    cents: int


class Renamed(tidings.Event, subject="events.renamed"):
    n: int


def new_bus(grace: float = 600.0) -> tidings.Bus:
    return tidings.Bus("shop", settings=tidings.Settings(retry=AT_ONCE, version_grace=grace))


def old(version: int | None, body: bytes, id: str = "i") -> Outgoing:
    headers = {} if version is None else {"ce-type": "events.price" if version == 1 else f"events.price.v{version}"}
    return Outgoing("events.price", body, {"ce-id": id, **headers}, id)


def upcasting(bus: tidings.Bus) -> list[Price]:
    """Two steps and a handler; returns what the handler sees."""
    seen: list[Price] = []

    @bus.upcast(Price, from_version=1)
    def to_cents(body: dict[str, Any]) -> dict[str, Any]:
        return {"cents": body["euros"] * 100}

    @bus.upcast(Price, from_version=2)
    def with_currency(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "currency": "EUR"}

    @bus.on(Price, group="g")
    async def handle(price: Price) -> None:
        seen.append(price)

    return seen


async def publish(t: TestBus, *messages: Outgoing) -> None:
    await t.bus.engine.publish(messages)
    await t.settle()


async def died(bus: tidings.Bus, *messages: Outgoing) -> list[DeadLetter]:
    async with TestBus(bus) as t:
        await publish(t, *messages)
        return await t.dead_letters()


async def test_older_messages_go_through_every_step() -> None:
    """Version 1 takes both steps, version 2 the second one, version 3 none."""
    bus = new_bus()
    seen = upcasting(bus)
    messages = [
        old(1, b'{"euros":1}', "a"),
        old(2, b'{"cents":250}', "b"),
        old(3, b'{"cents":300,"currency":"USD"}', "c"),
    ]
    assert await died(bus, *messages) == []
    assert seen == [Price(100, "EUR"), Price(250, "EUR"), Price(300, "USD")]


async def test_a_foreign_message_has_the_current_version() -> None:
    """Without a type, or with one that is not made from the subject, nothing is brought anywhere."""
    bus = new_bus()
    seen = upcasting(bus)
    body = b'{"cents":1,"currency":"EUR"}'
    foreign = Outgoing("events.price", body, {"ce-type": "com.example.price"}, "b")
    assert await died(bus, old(None, body, "a"), foreign) == []
    assert seen == [Price(1, "EUR")] * 2


async def test_what_is_published_has_the_class_s_version() -> None:
    """A publisher writes the version of its class into the type."""
    bus = new_bus()
    seen = upcasting(bus)
    async with TestBus(bus) as t:
        await bus.publish(Price(5, "EUR"))
        await t.settle()
        (message,) = await t.published()
        assert message.header("ce-type") == "events.price.v3"
    assert seen == [Price(5, "EUR")]


async def test_a_message_keeps_its_raw_body() -> None:
    """`data` is brought up to date, `body` is what was published; what tests and push decode is up to date as well."""
    bus, seen = new_bus(), []
    upcasting(bus)

    @bus.on(Price, group="raw")
    async def handle(message: tidings.Message[Price]) -> None:
        seen.append((message.data, message.body))

    async with TestBus(bus) as t:
        await publish(t, old(1, b'{"euros":1}'))
        assert [m.data for m in await t.published()] == [Price(100, "EUR")]
    assert seen == [(Price(100, "EUR"), b'{"euros":1}')]


async def test_a_handler_of_plain_values_behind_a_filter_gets_them_as_they_came() -> None:
    """Without a class there is no version to bring anything to; a newer one is no reason to wait."""
    bus, seen = new_bus(), []
    upcasting(bus)

    @bus.on("events.>", group="audit")
    async def audit(message: tidings.Message) -> None:
        seen.append(message.data)

    async with TestBus(bus) as t:
        await publish(t, old(1, b'{"euros":1}', "a"), old(4, b'{"new":1}', "b"))
    assert seen == [{"euros": 1}, {"new": 1}]


async def test_a_plain_dict_of_a_registered_class_is_brought_up_to_date() -> None:
    """A handler registered with the class and written for a dict gets the dict of the current version."""
    bus, seen = new_bus(), []
    upcasting(bus)

    @bus.on(Price, group="plain")
    async def plain(body: dict[str, Any]) -> None:
        seen.append(body)

    assert await died(bus, old(1, b'{"euros":1}')) == []
    assert seen == [{"cents": 100, "currency": "EUR"}]


async def test_a_newer_version_waits_and_burns_no_attempt() -> None:
    """It is handed back until the grace time, counted from its time, is over; then it is a dead letter."""
    bus = new_bus(grace=60)
    upcasting(bus)
    async with TestBus(bus) as t:
        await publish(t, old(4, b"{}"))
        await t.clock.advance(59)
        await t.settle()
        assert await t.dead_letters() == []
        assert (await bus.engine.stats()).groups["g"].delayed == 1
        await t.clock.advance(2)
        await t.settle()
        (letter,) = await t.dead_letters()
    assert (letter.reason, letter.attempts, letter.entry.body) == ("unknown_type", 0, b"{}")
    assert "events.price.v4" in letter.failure.message


async def test_a_backlog_of_a_newer_version_waits_for_its_workers() -> None:
    """What is older than the grace time when a worker first meets the version still gets that time."""
    clock = ManualClock()
    patience = Patience(clock, 60)
    entry = Entry(1, "events.price", clock.time() - 1000, {"ce-type": "events.price.v4"}, b"{}")
    why = DecodeError("unknown_type", "too new")
    assert patience.left(entry, why) == 5
    await clock.advance(58)
    assert patience.left(entry, why) == 2
    await clock.advance(2)
    assert patience.left(entry, why) <= 0


async def test_a_newer_worker_takes_what_an_older_one_handed_back() -> None:
    """Old and new side by side in one group: the new version ends with the new one, and nobody's attempt."""
    older, newer = new_bus(), new_bus()
    seen = upcasting(newer)

    early: list[Earlier] = []

    @older.on(Earlier, group="g")
    async def handle(price: Earlier) -> None:
        early.append(price)

    async with TestBus(older) as t:
        await publish(t, old(3, b'{"cents":1,"currency":"EUR"}'))
        assert (early, seen) == ([], [])
        await side_by_side(t, newer)
        assert (early, seen, await t.dead_letters()) == ([], [Price(1, "EUR")], [])


async def side_by_side(t: TestBus, newer: tidings.Bus) -> None:
    """Run another bus on the same store until its turn has come."""
    engine = MemoryEngine(t.store)
    await engine.open()
    async with attached(newer, engine, t.clock) as running:
        await running.work()
        for _ in range(40):
            await t.clock.advance(5)
            await t.settle()
    await engine.close()


@pytest.mark.parametrize(
    ("body", "reason", "text"),
    [
        (b"[1]", "invalid", "JSON object"),
        (b"{", "undecodable", "not JSON"),
        (b"{}", "invalid", "KeyError"),
        (b"[" * 100, "undecodable", "deeper"),
    ],
)
async def test_what_an_upcaster_cannot_take_is_kept(body: bytes, reason: str, text: str) -> None:
    """A body of another shape, or an error of the upcaster, is a dead letter with its bytes, at once."""
    bus = new_bus()
    upcasting(bus)
    (letter,) = await died(bus, old(1, body))
    assert (letter.reason, letter.entry.body) == (reason, body)
    assert text in letter.failure.message


@pytest.mark.parametrize("made", [None, [1], {"n": object()}, {"n": "\ud800"}])
async def test_what_an_upcaster_makes_is_checked(made: Any) -> None:
    """No dict, or one that is no JSON, is the message's dead letter and never a loop."""
    bus = new_bus()
    bus.upcast(Earlier, from_version=1)(lambda body: made)

    @bus.on(Earlier, group="g")
    async def handle(earlier: Earlier) -> None: ...

    (letter,) = await died(bus, old(1, b"{}"))
    assert letter.reason == "invalid"


async def test_a_missing_step_is_named() -> None:
    """An old version without a way to the current one is never guessed, and handled once the step is there."""
    bus, seen = new_bus(grace=1), []

    @bus.on(Price, group="g")
    async def handle(price: Price) -> None:
        seen.append(price)

    async with TestBus(bus) as t:
        await publish(t, old(2, b'{"cents":1}'))
        await t.clock.advance(2)
        await t.settle()
        (letter,) = await t.dead_letters()
        assert letter.reason == "unknown_type"
        assert "@bus.upcast(Price, from_version=2)" in letter.failure.message
        bus.upcast(Price, from_version=2)(lambda body: {**body, "currency": "EUR"})
        await t.redrive()
        await t.settle()
    assert seen == [Price(1, "EUR")]


@pytest.mark.parametrize(
    ("event", "version", "text"),
    [(Renamed, 1, "version=2"), (Price, 0, "from_version=1 to 2"), (Price, 3, "from_version=1 to 2")],
)
def test_a_step_must_lead_to_the_class(event: type, version: int, text: str) -> None:
    """From a version before the class's only."""
    with pytest.raises(tidings.ConfigError, match=text):
        new_bus().upcast(event, from_version=version)(lambda body: body)


def test_a_step_is_given_once() -> None:
    """A second upcaster from one version would be a guess."""
    bus = new_bus()
    upcasting(bus)
    with pytest.raises(tidings.ConfigError, match="already"):
        bus.upcast(Price, from_version=1)(lambda body: body)


def test_what_has_no_version_has_no_upcaster() -> None:
    """A class without a subject is refused."""
    with pytest.raises(tidings.ConfigError, match="no subject"):
        new_bus().upcast(int, from_version=1)


async def test_what_no_handler_here_listens_to_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A group that another application has claimed more for: the log names the subject and what to do."""
    wide, narrow = new_bus(), new_bus()

    @wide.on("events.>", group="g")
    async def every(body: dict[str, Any]) -> None: ...

    @narrow.on("events.mine", group="g")
    async def mine(body: dict[str, Any]) -> None: ...

    clock = ManualClock()
    store = MemoryStore(clock)
    engine = MemoryEngine(store)
    await engine.open()
    async with attached(wide, engine, clock):
        await wide.publish("events.other", {})
    async with attached(narrow, engine, clock) as running:
        await running.work()
        for _ in range(22):
            await clock.advance(5)
    told = [record.getMessage() for record in caplog.records if "handed back" in record.getMessage()]
    assert len(told) == 2
    assert "events.other" in told[0]
    assert "tidings groups ls" in told[0]
    await engine.close()
