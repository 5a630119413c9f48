"""From a value to a stored message: what is checked before the wire, and what the receipt says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

import tidings
from tidings.clock import ManualClock
from tidings.engine import Outgoing, Stored
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.message import header_size
from tidings.publisher import Publisher
from tidings.registry import Registry
from tidings.testing import TestBus


class New(tidings.Event, subject="events.new", key="owner"):
    item: str
    owner: str | None = None


class Second(tidings.Event, subject="events.second", version=2):
    pass


class Count(tidings.Request[int], subject="todo.count"):
    pass


@tidings.event("events.model")
class Model(BaseModel):
    id: int


@tidings.event("events.data", key="id")
@dataclass
class Data:
    id: int


class Silent(MemoryEngine):
    """An engine that stores and whose answer is lost, as over a network."""

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        await super().publish(messages)
        raise tidings.Unconfirmed("no answer in 10 s")


def publisher(engine: MemoryEngine | None = None) -> Publisher:
    clock = ManualClock()
    engine = engine or MemoryEngine(MemoryStore(clock))
    return Publisher(engine, Registry(), source="todo", roots=["events.>"], clock=clock)


@pytest.fixture
async def t() -> AsyncIterator[TestBus]:
    async with TestBus(tidings.Bus("todo")) as testing:
        yield testing


async def test_a_receipt_says_where_it_stands(t: TestBus) -> None:
    """Positions rise, ids differ, and nothing is a duplicate."""
    first, second = await t.bus.publish(New("a")), await t.bus.publish(New("b"))
    assert (first.subject, first.position, first.duplicate) == ("events.new", 1, False)
    assert second.position == 2
    assert first.id < second.id


@pytest.mark.parametrize(
    ("event", "body"),
    [(New("x"), b'{"item":"x","owner":null}'), (Model(id=1), b'{"id":1}'), (Data(2), b'{"id":2}')],
)
async def test_every_kind_of_class_is_plain_json_on_the_wire(t: TestBus, event: Any, body: bytes) -> None:
    """Structs, Pydantic models and dataclasses leave nothing of themselves but their fields."""
    await t.bus.publish(event)
    (stored,) = await t.published()
    assert stored.body == body


async def test_a_subject_without_a_class_takes_plain_values(t: TestBus) -> None:
    """`publish("events.x", {...})` works with nothing registered."""
    await t.bus.publish("events.plain", {"a": [1, None, "ü"]})
    (stored,) = await t.published("events.plain")
    assert stored.data == {"a": [1, None, "ü"]}
    assert stored.header("ce-type") == "events.plain"


async def test_the_same_id_is_stored_once(t: TestBus) -> None:
    """Identity is subject and id: a repeat tells that it was one, another subject is another message."""
    first = await t.bus.publish(New("a"), id="order-1")
    again = await t.bus.publish(New("changed"), id="order-1")
    other = await t.bus.publish("events.other", 1, id="order-1")
    assert (again.duplicate, again.position, again.id) == (True, first.position, "order-1")
    assert not other.duplicate
    assert [m.data["item"] for m in await t.published("events.new")] == ["a"]


async def test_many_keep_their_order(t: TestBus) -> None:
    """`publish_many` stores in the order given and answers in it."""
    receipts = await t.bus.publish_many(New(str(n)) for n in range(50))
    assert [r.position for r in receipts] == list(range(1, 51))
    assert [m.data["item"] for m in await t.published()] == [str(n) for n in range(50)]
    assert await t.bus.publish_many([]) == []


async def test_many_are_checked_before_the_first_is_sent(t: TestBus) -> None:
    """One that is refused keeps all others back, so that nobody has to find out which were sent."""
    with pytest.raises(tidings.InvalidMessage):
        await t.bus.publish_many([New("fine"), New("\x00")])
    assert await t.published() == []


async def test_the_version_is_in_the_type(t: TestBus) -> None:
    """From version 2 on the CloudEvents type says so."""
    await t.bus.publish(Second())
    assert (await t.published())[0].header("ce-type") == "events.second.v2"


def test_the_key_is_the_fields_value() -> None:
    """The event's own field, an explicit key before it, and none at all where the field is None."""
    compose = publisher().compose
    assert compose(New("x", owner="ann")).headers["ce-partitionkey"] == "ann"
    assert compose(New("x", owner="ann"), key="bob").headers["ce-partitionkey"] == "bob"
    assert compose(Data(7)).headers["ce-partitionkey"] == "7"
    assert "ce-partitionkey" not in compose(New("x")).headers


@pytest.mark.parametrize(
    ("what", "body", "words"),
    [
        (3, None, "int has no subject"),
        (New, None, "takes an event, not a class"),
        ({"a": 1}, None, "dict has no subject"),
        (New("x"), {"a": 1}, "New is the whole message"),
        (Count(), None, r"Count is a request: ask with bus\.request"),
        ("other.x", 1, r"'other\.x' is outside the durable subjects events\.>.*broadcast.*roots="),
        ("events.*", 1, "wildcards belong into filters"),
        ("events..x", 1, "empty token"),
        ("events.a b", 1, "character"),
        ("events.x\r\nPUB y", 1, "character"),
        ("events." + "x" * 250, 1, "longer than 255"),
        ("$JS.API.x", 1, "belong to the broker"),
        ("", 1, "empty"),
        ("events.x", math.nan, "nan"),
        ("events.x", {"a": "\x00"}, "NUL"),
        ("events.x", ["\ud800"], "surrogates"),
        ("events.x", object(), "object"),
    ],
)
def test_bad_input_is_refused_before_the_wire(what: Any, body: Any, words: str) -> None:
    """Each mistake raises `InvalidMessage` with its cause; nothing was sent."""
    with pytest.raises(tidings.InvalidMessage, match=words):
        publisher().compose(what, body)


@pytest.mark.parametrize("id", ["", "x" * 201, "a\nb", "a\x00", "\ud800", "a\u2028b"])
def test_bad_ids_are_refused(id: str) -> None:
    """An id becomes a header and a database key."""
    with pytest.raises(tidings.InvalidMessage, match="1 to 200 printable"):
        publisher().compose("events.x", 1, id=id)


@pytest.mark.parametrize("key", ["a\x00", "\ud800"])
def test_bad_keys_are_refused(key: str) -> None:
    """A key that no header or database could give back is refused."""
    with pytest.raises(tidings.InvalidMessage, match="NUL"):
        publisher().compose("events.x", 1, key=key)


def test_the_size_counts_everything_on_the_wire() -> None:
    """A message at the limit is composed, one byte more is refused with both numbers: headers and subject count."""
    made = publisher()
    empty = made.compose("events.x", "", id="i")
    room = made.engine.max_message - len(empty.body) - len("events.x") - header_size(empty.headers)
    assert len(made.compose("events.x", "x" * room, id="i").body) == room + 2
    with pytest.raises(tidings.TooLarge) as caught:
        made.compose("events.x", "x" * (room + 1), id="i")
    assert (caught.value.size, caught.value.limit) == (made.engine.max_message + 1, made.engine.max_message)
    with pytest.raises(tidings.TooLarge):
        made.compose("events.x", 1, key="ü" * 200_000)


def test_delay_and_time() -> None:
    """Seconds from now, or an aware time; what has passed is due now."""
    made = publisher()
    now = made.clock.time()
    at = datetime.fromtimestamp(now, UTC)
    assert made.compose("events.x", 1, delay=5).not_before == now + 5
    assert made.compose("events.x", 1, at=at + timedelta(hours=1)).not_before == now + 3600
    assert made.compose("events.x", 1, at=at - timedelta(days=1)).not_before is None
    assert made.compose("events.x", 1, delay=0).not_before is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": 1, "at": datetime.now(UTC)}, "not both"),
        ({"at": datetime(2030, 1, 1)}, "no time zone"),
        ({"delay": 200 * 365 * 86400}, "hundred years"),
        ({"delay": math.inf}, "hundred years"),
        ({"delay": math.nan}, "nan"),
    ],
)
def test_times_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    """A naive time means another moment on each machine; for ever and NaN mean none."""
    with pytest.raises(tidings.InvalidMessage, match=words):
        publisher().compose("events.x", 1, **options)


async def test_a_delayed_event_comes_when_it_is_due(t: TestBus) -> None:
    """It is stored now (position 0), in the log at its time, and published twice under one id still once."""
    receipt = await t.bus.publish(New("later"), delay=60, id="later")
    again = await t.bus.publish(New("later"), delay=60, id="later")
    assert (receipt.position, again.duplicate) == (0, True)
    assert await t.published() == []
    await t.clock.advance(59.9)
    assert await t.published() == []
    await t.clock.advance(0.2)
    assert [m.data["item"] for m in await t.published()] == ["later"]


async def test_unconfirmed_names_every_message() -> None:
    """When the answer stays away, the receipts hold the ids to repeat with; the repeat is stored once."""
    store = MemoryStore(ManualClock())
    made = publisher(Silent(store))
    await made.engine.open()
    messages = [made.compose(New("a")), made.compose(New("b"))]
    with pytest.raises(tidings.Unconfirmed, match="no answer") as caught:
        await made.send(messages)
    assert [r.id for r in caught.value.receipts] == [m.id for m in messages]
    assert caught.value.receipt == caught.value.receipts[0]
    assert caught.value.receipt.position == 0
    well = publisher(MemoryEngine(store))
    await well.engine.open()
    assert [r.duplicate for r in await well.send(messages)] == [True, True]
    assert store.stats().messages == 2


async def test_nothing_to_send_asks_nobody() -> None:
    """An empty list needs no engine: a handler without follow-ups does not wait for a round trip."""
    made = publisher()  # its engine was never opened
    assert await made.send([]) == []


async def test_a_full_store_says_so() -> None:
    """Publishers get `StoreFull` while unhandled messages fill the store; nothing stored goes away."""
    clock = ManualClock()
    store = MemoryStore(clock, limit=20_000)
    made = publisher(MemoryEngine(store))
    await made.engine.open()
    while store.stats().bytes < 17_000:
        await made.send([made.compose("events.x", "x" * 500)])
    before = store.stats().messages
    with pytest.raises(tidings.StoreFull):
        await made.send([made.compose("events.x", "x" * 1500)])
    assert store.stats().messages == before


async def test_durations_are_taken_as_text(t: TestBus) -> None:
    """What `every` takes, `delay`, `expires` and time limits take; what is no duration is refused in a sentence."""
    message = publisher().compose(New("x"), delay="5m", expires="1h")
    same = publisher().compose(New("x"), delay=300, expires=3600)
    assert message.not_before == same.not_before == t.clock.time() + 300
    assert message.headers["ce-expirytime"] == same.headers["ce-expirytime"]
    with pytest.raises(tidings.InvalidMessage, match="delay='soon' is not a duration: write 500ms, 5s"):
        await t.bus.publish(New("x"), delay="soon")
    with pytest.raises(tidings.InvalidMessage, match="expires='5 minutes' is not a duration"):
        await t.bus.publish(New("x"), expires="5 minutes")
    receipt = await t.bus.publish(New("x"))
    waiting = asyncio.create_task(receipt.wait(Second, timeout="2m"))
    while not waiting.done():
        await t.clock.advance(50)
    with pytest.raises(tidings.StillWorking, match="within 120 s"):
        await waiting

    @t.bus.on(New, group="other", timeout="2m")
    async def handle(new: New) -> None: ...

    assert t.bus.registry.handlers["other"].limit == 120


def test_a_receipt_is_shown_without_its_bus() -> None:
    """What a person prints has the id, the subject and the place, and nothing of the machinery."""
    bus = tidings.Bus("todo", url="memory:")
    assert repr(bus.receipt("x", position=7)) == "Receipt(id='x', subject='', position=7)"


async def test_a_wait_in_vain_says_that_nobody_works() -> None:
    """Of the groups that the event can come from those are named that have no worker, and none once it runs."""
    bus = tidings.Bus("todo", url="memory:")
    hold = asyncio.Event()

    @bus.on(New, group="nw")
    async def handle(new: New) -> Second:
        await hold.wait()
        return Second()

    async with bus:
        receipt = await bus.publish(New("x"))
        with pytest.raises(tidings.StillWorking, match=r"it may still come, but no worker of nw is pulling\. See"):
            await receipt.wait(Second, timeout="10ms")
        await bus.work()
        with pytest.raises(tidings.StillWorking, match=r"it may still come\. See"):
            await receipt.wait(Second, timeout="10ms")
        hold.set()
        await receipt.wait(Second)
