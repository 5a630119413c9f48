"""From `publish` to `pull`."""

from __future__ import annotations

import asyncio
import random

from msgspec.structs import replace

from tidings.engine import Delivery, Engine, Outgoing
from tidings.errors import InvalidMessage, TooLarge

from .case import case
from .steps import finish, glance, group, message, nothing, publish, raising, take, take_later, take_one, texts
from .world import World


@case("seam")
async def roundtrip(world: World) -> None:
    """Body and headers arrive byte for byte, empty, binary or as large as allowed, with position and time."""
    engine = await world.engine()
    await engine.declare([group(world)])
    headers = {"ce-id": "1%20%C3%A4", "ce-source": "a/b:c?d=e&f", "Mixed-Case": "x", "empty": ""}
    bodies = [b"", bytes(range(256)), b"x" * (engine.max_message - 2048)]
    sent = [Outgoing("events.round.trip", body, headers, f"id-{n}") for n, body in enumerate(bodies)]

    stored = await engine.publish(sent)
    got = await take(engine, "g", len(sent))

    assert [s.duplicate for s in stored] == [False] * 3
    assert [d.entry.position for d in got] == [s.position for s in stored]
    for delivery, outgoing in zip(got, sent, strict=True):
        assert delivery.entry.subject == outgoing.subject
        assert delivery.entry.body == outgoing.body
        assert {name: delivery.entry.headers[name] for name in headers} == headers
        assert abs(delivery.entry.time - world.clock.time()) < 30
        assert (delivery.group, delivery.deliveries, delivery.attempts) == ("g", 1, 0)
        assert delivery.deadline > world.clock.monotonic()


@case("seam")
async def every_group_gets_all(world: World) -> None:
    """Each group gets every message of its filters, whatever other groups do."""
    engine = await world.engine()
    await engine.declare([group(world, name) for name in ("one", "two", "three")])
    sent = [str(n) for n in range(60)]
    await publish(engine, *sent)

    for name in ("one", "two", "three"):
        got = await take(engine, name, len(sent))
        assert sorted(texts(got), key=int) == sent
        await finish(engine, got)
        await nothing(world, engine, name)


@case("seam")
async def one_member_gets_each(world: World) -> None:
    """Readers of one group on three connections share its messages; none goes to two of them."""
    engines = [await world.engine() for _ in range(3)]
    await engines[0].declare([group(world)])
    sent = [str(n) for n in range(150)]
    got: list[str] = []
    enough = asyncio.Event()

    async def read(engine: Engine) -> None:
        while True:
            taken = await engine.pull("g", 7, 30.0)
            await finish(engine, taken)
            got.extend(texts(taken))
            if len(got) >= len(sent):
                enough.set()

    readers = [asyncio.create_task(read(engine)) for engine in engines]
    try:
        await publish(engines[0], *sent)
        await enough.wait()
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    assert sorted(got, key=int) == sent
    await nothing(world, engines[1], "g")


@case("seam")
async def filters_choose(world: World) -> None:
    """A group gets what its filters match and nothing else: `*` is one token, `>` one or more."""
    engine = await world.engine()
    filters = {"exact": "events.a.b", "star": "events.*.b", "rest": "events.a.>", "none": "events.A.b"}
    await engine.declare([group(world, name, filter) for name, filter in filters.items()])
    for subject in ("events.a", "events.a.b", "events.a.b.c", "events.c.b", "events.ab.b"):
        await publish(engine, subject, subject=subject)

    expected = {
        "exact": ["events.a.b"],
        "star": ["events.a.b", "events.c.b", "events.ab.b"],
        "rest": ["events.a.b", "events.a.b.c"],
    }
    for name, subjects in expected.items():
        assert texts(await take(engine, name, len(subjects))) == subjects
    await nothing(world, engine, *filters)


@case("seam")
async def overlapping_filters_deliver_once(world: World) -> None:
    """A message that several filters of one group match comes to it once."""
    engine = await world.engine()
    await engine.declare([group(world, "g", "events.a.>", "events.*.b")])
    await publish(engine, "both", subject="events.a.b")
    await finish(engine, [await take_one(engine, "g")])
    await nothing(world, engine, "g")


@case("seam")
async def one_reader_gets_them_in_order(world: World) -> None:
    """While nothing fails, a single reader gets the messages of a connection in the order of publishing."""
    engine = await world.engine()
    await engine.declare([group(world)])
    sent = [str(n) for n in range(200)]
    await publish(engine, *sent[:50])
    for text in sent[50:60]:
        await publish(engine, text)
    await publish(engine, *sent[60:])
    assert texts(await take(engine, "g", len(sent))) == sent


@case("seam")
async def pull_keeps_its_limit(world: World) -> None:
    """`pull` never gives more than `limit`, and never waits for that many."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, *"abcdefg")
    got: list[Delivery] = []
    while len(got) < 7:
        taken = await engine.pull("g", 3, 30.0)
        assert 1 <= len(taken) <= 3
        got += taken
    assert "".join(texts(got)) == "abcdefg"


@case("seam")
async def pull_wakes_early(world: World) -> None:
    """A waiting `pull` returns when a message comes, not when its time is over."""
    reader, writer = await world.engine(), await world.engine()
    await reader.declare([group(world)])
    begun = world.clock.monotonic()
    pull = asyncio.create_task(reader.pull("g", 10, 300.0))
    await world.wait(world.moment)
    assert not pull.done()
    await publish(writer, "news")
    assert texts(await pull) == ["news"]
    assert world.clock.monotonic() - begun < 200.0


@case("seam")
async def pull_ends_empty(world: World) -> None:
    """Without a message `pull` returns `[]` when its time is over, and not before."""
    engine = await world.engine()
    await engine.declare([group(world)])
    pull = asyncio.create_task(engine.pull("g", 10, 4 * world.moment))
    await world.wait(2 * world.moment)
    assert not pull.done()
    await world.wait(3 * world.moment)
    assert await pull == []


@case("seam")
async def cancelled_pull_loses_nothing(world: World) -> None:
    """Whenever a `pull` is cancelled, its messages come with a later one."""
    engine = await world.engine()
    await engine.declare([group(world)])
    chance = random.Random(11)  # noqa: S311
    sent = [str(n) for n in range(100)]
    got: list[str] = []

    async def collect(deliveries: list[Delivery]) -> None:
        await finish(engine, deliveries)
        got.extend(texts(deliveries))

    for text in sent:
        pull = asyncio.create_task(engine.pull("g", 3, 30.0))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        await publish(engine, text)
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        pull.cancel()
        await asyncio.wait({pull})
        if not pull.cancelled():
            await collect(pull.result())
    while len(got) < len(sent):
        await collect(await engine.pull("g", 10, 30.0))
    assert sorted(got, key=int) == sent


@case("seam")
async def same_id_stored_once(world: World) -> None:
    """A repeat of subject and id stores nothing new, says so and names the place; the id alone is no repeat."""
    one, other = await world.engine(), await world.engine()
    await one.declare([group(world)])
    first = message("first", id="same")
    [stored] = await one.publish([first])
    both = await asyncio.gather(one.publish([first]), other.publish([first]))
    [elsewhere] = await other.publish([message("elsewhere", subject="events.b", id="same")])

    assert not stored.duplicate
    assert [(s.duplicate, s.position) for [s] in both] == [(True, stored.position)] * 2
    assert not elsewhere.duplicate
    assert texts(await take(one, "g", 2)) == ["first", "elsewhere"]
    await nothing(world, one, "g")


@case("seam")
async def repeated_batch_stores_the_rest(world: World) -> None:
    """Repeating a batch of which some are stored stores the others, and receipts keep the order asked for."""
    engine = await world.engine()
    batch = [message(str(n)) for n in range(40)]
    known = await engine.publish(batch[10:20])
    receipts = await engine.publish(batch)

    assert receipts[10:20] == [type(s)(s.position, duplicate=True) for s in known]
    assert [s.duplicate for s in receipts].count(False) == 30
    assert len({s.position for s in receipts}) == 40
    assert len(await engine.read(["events.>"], 0, 100)) == 40


@case("seam")
async def refused_before_anything_is_stored(world: World) -> None:
    """One message that cannot be carried refuses the whole call with its reason, and the connection stays usable."""
    engine = await world.engine()
    good = message("good")
    too_large = message(b"x" * (engine.max_message + 1))
    with raising(TooLarge):
        await engine.publish([good, too_large])
    for bad in (
        message(subject="events..a"),
        message(subject="events.*"),
        message(subject="events.a b"),
        message(headers={"a": "line\r\nbreak: yes"}),
        message(headers={"a: b": "c"}),
        message(headers={"a": "\ud800"}),
        message(headers={"a": "umlaut \u00e4"}),
        message(headers={"a": " blank"}),
        message(headers={"Nats-Rollup": "all"}),
        message(headers={"a": "x" * 60_000}),
    ):
        with raising(InvalidMessage):
            await engine.publish([good, bad])
    assert await engine.read(["events.>"], 0, 10) == []
    await publish(engine, "fine")
    assert [e.body for e in await engine.read(["events.>"], 0, 10)] == [b"fine"]


@case("seam")
async def not_before_waits(world: World) -> None:
    """A message for later is handed out at its time, also when its publisher is gone; newer ones overtake it."""
    reader, writer = await world.engine(), await world.engine()
    await reader.declare([group(world)])
    due = world.clock.time() + 2 * world.lease
    [stored] = await writer.publish([message("later", not_before=due)])
    assert (stored.position, stored.duplicate) == (0, False)
    await publish(writer, "now")
    await world.crash(writer)

    overtaking = await take_one(reader, "g")
    assert overtaking.entry.body == b"now"
    await finish(reader, [overtaking])
    delivery = await take_later(world, reader, "g", due - world.clock.time())
    assert delivery.entry.body == b"later"
    assert delivery.entry.subject == "events.a"
    assert delivery.entry.position > overtaking.entry.position


@case("seam")
async def not_before_in_the_past_is_now(world: World) -> None:
    """A `not_before` that is over already stores the message at once."""
    engine = await world.engine()
    [stored] = await engine.publish([message("late", not_before=world.clock.time() - 60)])
    assert stored.position > 0


@case("seam")
async def not_before_keeps_the_identity(world: World) -> None:
    """A message with a time that is published again after its time, or for another time, is the same message: it is
    handed out once."""
    engine = await world.engine()
    await engine.declare([group(world)])
    later = message("later", not_before=world.clock.time() + world.lease / 2)
    await engine.publish([later])
    await world.wait(world.lease / 2)
    await finish(engine, [await take_one(engine, "g")])
    [again, other] = await engine.publish([later, replace(later, not_before=world.clock.time() + world.lease)])
    assert again.duplicate
    assert other.duplicate
    await world.wait(1.2 * world.lease)
    await nothing(world, engine, "g")


@case("seam")
async def not_before_survives_a_restart(world: World) -> None:
    """A message for later comes, once, although its publisher is gone and what keeps it crashes before and after its
    time."""
    writer, engine = await world.engine(), await world.engine()
    await writer.declare([group(world)])
    await writer.publish([message("later", not_before=world.clock.time() + world.lease)])
    await world.crash(writer)
    await world.restart()
    await world.wait(world.lease)
    await world.restart()

    delivery = await take_one(engine, "g")
    assert delivery.entry.body == b"later"
    await finish(engine, [delivery])
    await nothing(world, engine, "g")


@case("seam")
async def delayed_messages_are_listed_and_cancelled(world: World) -> None:
    """What waits for its time is listed as it was published; a cancelled one never comes, the others do; what was
    handed out, or cancelled before, cannot be cancelled."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    due = round(world.clock.time() + 4 * world.lease, 3)
    kept = message("kept", id="same", not_before=due, headers={"ce-id": "same"})
    dropped = message("dropped", id="same", subject="events.b", not_before=due)
    await engine.publish([kept, dropped])
    assert await other.delayed(10) == [kept, dropped]
    assert await other.delayed(1) == [kept]

    assert await other.cancel("events.b", "same")
    assert not await engine.cancel("events.b", "same")
    assert not await engine.cancel("events.a", "never published")
    assert await engine.delayed(10) == [kept]
    [repeated] = await engine.publish([dropped])
    assert repeated.duplicate, "the id of a cancelled message stays known"
    await world.restart()

    delivery = await take_later(world, engine, "g", due - world.clock.time())
    assert delivery.entry.body == b"kept"
    assert not await engine.cancel("events.a", "same")
    assert await engine.delayed(10) == []
    await finish(engine, [delivery])
    await nothing(world, engine, "g")


@case("seam")
async def published_survives_a_restart(world: World) -> None:
    """What `publish` returned for is there after a crash of all that was involved."""
    writer = await world.engine()
    await writer.declare([group(world)])
    sent = [str(n) for n in range(50)]
    await publish(writer, *sent)
    await world.crash(writer)
    await world.restart()

    engine = await world.engine()
    got = await take(engine, "g", len(sent))
    assert texts(got) == sent
    await finish(engine, got)
    assert await glance(world, engine, "g") == []
