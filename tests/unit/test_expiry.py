"""`expires=`: what nobody handled in time is a dead letter, and its handler does not run."""

from __future__ import annotations

from typing import Any

import pytest

import tidings
from handlers import New, new_bus
from tidings.engine import Outgoing
from tidings.message import expiry
from tidings.testing import TestBus


async def test_a_message_in_time_is_handled() -> None:
    """And the handler sees when it would have been too late, as the CloudEvents attribute says."""
    bus = new_bus()
    seen: list[Any] = []

    @bus.on(New, group="g")
    async def handle(message: tidings.Message[New]) -> None:
        assert message.expires is not None
        seen.append(((message.expires - message.time).total_seconds(), message.header("ce-expirytime")))

    async with TestBus(bus) as t:
        await bus.publish(New("x"), expires=90)
        await t.settle()
        assert await t.dead_letters() == []
    assert seen == [(pytest.approx(90), "2023-11-14T22:14:50.000000Z")]


async def test_a_message_past_its_time_is_a_dead_letter() -> None:
    """No handler runs and no attempt is counted; a message without a time goes its way."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        seen.append(new.item)

    async with TestBus(bus) as t:
        assert bus.connected is not None
        publisher = bus.connected.publisher
        late, whenever = publisher.compose(New("late"), expires=60), publisher.compose(New("whenever"))
        await t.clock.advance(60)
        await publisher.send([late, whenever])
        await t.settle()
        (letter,) = await t.dead_letters()
    assert seen == ["whenever"]
    assert (letter.reason, letter.attempts) == ("expired", 0)
    assert "2023-11-14T22:14:20" in letter.failure.message


async def test_redriven_it_is_handled() -> None:
    """Somebody wants it handled although its time is over: it does not expire a second time."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        seen.append(new.item)

    async with TestBus(bus) as t:
        headers = {"ce-expirytime": "2001-01-01T00:00:00Z"}
        await bus.engine.publish([Outgoing("events.new", b'{"item":"late"}', headers, "i")])
        await t.settle()
        assert await t.redrive() == 1
        await t.settle()
        assert await t.dead_letters() == []
    assert seen == ["late"]


async def test_a_retry_past_its_time_is_none() -> None:
    """What failed and comes back too late is dead for being late, with the attempts it had."""
    policy = tidings.RetryPolicy(attempts=8, first=0, most=0)
    bus, seen = tidings.Bus("todo", settings=tidings.Settings(retry=policy)), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        seen.append(new.item)
        raise tidings.RetryLater(after=20)

    async with TestBus(bus) as t:
        await bus.publish(New("x"), expires=50)
        await t.settle()
        for _ in range(6):
            await t.clock.advance(20)
            await t.settle()
        (letter,) = await t.dead_letters()
    assert len(seen) == 3
    assert (letter.reason, letter.attempts) == ("expired", 3)


@pytest.mark.parametrize(
    "text", ["tomorrow", "2023-13-01T00:00:00Z", "2020-01-01T00:00:00", "", "9999-99-99", "%ff", "2020"]
)
async def test_a_foreign_time_that_is_none_expires_nothing(text: str) -> None:
    """A message is handled rather than lost over a header that nobody can read."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(message: tidings.Message[New]) -> None:
        seen.append(message.expires)

    async with TestBus(bus) as t:
        await bus.engine.publish([Outgoing("events.new", b'{"item":"x"}', {"ce-expirytime": text}, "i")])
        await t.settle()
    assert seen == [None]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:01:00Z", 60),
        ("1970-01-01T01:01:00+01:00", 60),
        ("1970-01-01t00:01:00.500z", 60.5),
        ("1970-01-01T00%3A01%3A00Z", 60),
    ],
)
def test_times_of_rfc_3339_are_read(text: str, seconds: float) -> None:
    """With any offset, in either case, with a fraction, and percent-encoded as CloudEvents headers are."""
    assert expiry({"ce-expirytime": text}) == seconds


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"expires": 0}, "more than 0"),
        ({"expires": -1}, "more than 0"),
        ({"expires": float("nan")}, "more than 0"),
        ({"expires": float("inf")}, "hundred years"),
        ({"expires": 5, "delay": 5}, "before it is due"),
    ],
)
async def test_a_time_that_means_nothing_is_refused(options: dict[str, Any], words: str) -> None:
    """Before the wire; also one that is over before the message is due."""
    async with TestBus(bus := new_bus()) as t:
        with pytest.raises(tidings.InvalidMessage, match=words):
            await bus.publish(New("x"), **options)
        assert await t.published() == []
