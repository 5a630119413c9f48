"""What becomes of a delivery."""

from __future__ import annotations

import asyncio

from tidings.engine import Dead, Done, Release, RetryAfter

from .case import case
from .steps import FAILURE, finish, group, message, nothing, publish, take, take_later, take_one, texts
from .world import World


@case("seam")
async def done_is_final(world: World) -> None:
    """What is done does not come back: not after leases have ended, not on another connection."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a", "b")
    await finish(engine, await take(engine, "g", 2))
    await world.wait(2.5 * world.lease)
    await nothing(world, engine, "g")
    await nothing(world, other, "g")


@case("seam")
async def lost_lease_redelivers(world: World) -> None:
    """What a crashed reader held goes to another one after its lease, not before, and counts as a delivery."""
    doomed, other = await world.engine(), await world.engine()
    await doomed.declare([group(world)])
    await publish(doomed, "a")
    held = await take_one(doomed, "g")
    await world.crash(doomed)

    delivery = await take_later(world, other, "g", world.lease)
    assert delivery.entry == held.entry
    assert (delivery.deliveries, delivery.attempts) == (2, 0)


@case("seam")
async def extend_holds(world: World) -> None:
    """A lease that is extended in time never ends; when that stops, it does."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a")
    held = await take_one(engine, "g")
    for _ in range(5):
        before = held.deadline
        await world.wait(world.lease / 2)
        await engine.extend([held])
        assert held.deadline > before
    await nothing(world, other, "g")
    await engine.extend([held])
    delivery = await take_later(world, other, "g", world.lease)
    assert delivery.deliveries == 2


@case("seam")
async def release_burns_nothing(world: World) -> None:
    """A released message comes again at once, to anybody, with no attempt counted; with a delay, after that."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a")
    await engine.settle([Release(await take_one(engine, "g"))])
    again = await take_one(other, "g")
    assert (again.deliveries, again.attempts) == (2, 0)

    delay = 2 * world.lease
    await other.settle([Release(again, delay)])
    delivery = await take_later(world, engine, "g", delay)
    assert (delivery.entry.body, delivery.attempts) == (b"a", 0)


@case("seam")
async def retry_waits_and_counts(world: World) -> None:
    """A retry comes not before its delay, longer than a lease or not, with one attempt more each time."""
    engine = await world.engine()
    await engine.declare([group(world), group(world, "other")])
    await publish(engine, "a")
    delivery = await take_one(engine, "g")
    for attempt, delay in enumerate([world.lease / 2, 2 * world.lease], start=1):
        await engine.settle([RetryAfter(delivery, delay, FAILURE)])
        delivery = await take_later(world, engine, "g", delay)
        assert (delivery.entry.body, delivery.attempts) == (b"a", attempt)
    assert (await take_one(engine, "other")).attempts == 0


@case("seam")
async def what_is_handed_back_comes_at_once(world: World) -> None:
    """A retry or release without delay comes again at once, also to the connection that said it and is waiting."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a")
    delivery = await take_one(engine, "g")
    begun = world.clock.monotonic()
    for turn in range(1, 6):
        waiting = asyncio.create_task(engine.pull("g", 5, 30.0))
        await asyncio.sleep(0.01)
        await engine.settle([RetryAfter(delivery, 0.0, FAILURE) if turn % 2 else Release(delivery)])
        [delivery] = await waiting
        assert (delivery.deliveries, delivery.attempts) == (turn + 1, (turn + 1) // 2)
    assert world.clock.monotonic() - begun < world.lease * 0.8


@case("seam")
async def retry_survives_a_crash(world: World) -> None:
    """Delay and attempts of a retry outlive the process that asked for it and a restart of what keeps them."""
    doomed, other = await world.engine(), await world.engine()
    await doomed.declare([group(world)])
    await publish(doomed, "a")
    delay = 3 * world.lease
    await doomed.settle([RetryAfter(await take_one(doomed, "g"), delay, FAILURE)])
    await world.crash(doomed)
    delivery = await take_later(world, other, "g", delay)
    assert delivery.attempts == 1

    await other.settle([RetryAfter(delivery, 0.0, FAILURE)])
    await world.restart()
    assert (await take_one(await world.engine(), "g")).attempts == 2


@case("seam")
async def attempts_do_not_count_lost_leases(world: World) -> None:
    """A lease that ends counts as a delivery and never as an attempt, also after a real attempt."""
    engine, doomed = await world.engine(), await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "a")
    await engine.settle([RetryAfter(await take_one(engine, "g"), 0.0, FAILURE)])
    held = await take_one(doomed, "g")
    await world.crash(doomed)
    delivery = await take_later(world, engine, "g", world.lease)
    assert (held.attempts, delivery.attempts) == (1, 1)
    assert delivery.deliveries == held.deliveries + 1


@case("seam")
async def poison_harms_no_neighbour(world: World) -> None:
    """While one message fails again and again, all the others of its group are handed out."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, *[str(n) for n in range(40)])
    done: set[str] = set()
    failed = 0
    while len(done) < 39:
        for delivery in await engine.pull("g", 5, 30.0):
            text = delivery.entry.body.decode()
            if text == "13":
                failed += 1
                await engine.settle([RetryAfter(delivery, 0.0, FAILURE)])
            else:
                await engine.settle([Done(delivery)])
                done.add(text)
    poison = await take_one(engine, "g")
    assert poison.entry.body == b"13"
    assert poison.attempts == failed >= 1


@case("seam")
async def dead_letter_is_whole(world: World) -> None:
    """A dead letter leaves its group only, and keeps original bytes, headers, place, reason, failure and attempts."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world), group(world, "other")])
    await engine.publish([message(b"\xff\x00", subject="events.x.y", headers={"ce-id": "7", "ce-type": "t"})])
    await engine.settle([RetryAfter(await take_one(engine, "g"), 0.0, FAILURE)])
    delivery = await take_one(engine, "g")
    await engine.settle([Dead(delivery, "handler_error", FAILURE)])

    [letter] = await other.dead_letters("g")
    assert letter.entry.body == b"\xff\x00"
    assert letter.entry.subject == "events.x.y"
    assert (letter.entry.headers["ce-id"], letter.entry.headers["ce-type"]) == ("7", "t")
    assert letter.entry.position == delivery.entry.position
    assert abs(letter.entry.time - delivery.entry.time) < 0.001
    assert (letter.group, letter.reason, letter.failure, letter.attempts) == ("g", "handler_error", FAILURE, 2)
    assert abs(letter.died - world.clock.time()) < 30
    assert letter.key == f"g/{delivery.entry.position}"
    assert await other.dead_letters("other") == []
    assert (await take_one(engine, "other")).entry.body == b"\xff\x00"
    await world.wait(1.5 * world.lease)
    await nothing(world, other, "g")


@case("seam")
async def dead_letter_is_stored_once(world: World) -> None:
    """Saying `Dead` twice, or late from a lost lease as well, leaves one dead letter for message and group."""
    engine, slow = await world.engine(), await world.engine()
    await engine.declare([group(world), group(world, "other")])
    await publish(engine, "a")
    stale = await take_one(slow, "g")
    delivery = await take_later(world, engine, "g", world.lease)
    await engine.settle([Dead(delivery, "undecodable", FAILURE)])
    await engine.settle([Dead(delivery, "undecodable", FAILURE), Done(delivery)])
    await slow.settle([Dead(stale, "rejected", FAILURE)])
    await engine.settle([Dead(await take_one(engine, "other"), "rejected", FAILURE)])

    await world.wait(1.5 * world.lease)
    letters = await engine.dead_letters()
    told = sorted((letter.group, letter.reason, letter.attempts) for letter in letters)
    assert told == [("g", "undecodable", 0), ("other", "rejected", 1)]
    await nothing(world, engine, "g", "other")


@case("seam")
async def redrive_goes_to_one_group(world: World) -> None:
    """Redriven letters come to the group that failed and to no other, in order, with no attempts counted, once."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([group(world), group(world, "fine")])
    await publish(engine, *"abc")
    await finish(engine, await take(engine, "fine", 3))
    for delivery in await take(engine, "g", 3):
        await engine.settle([Dead(delivery, "handler_error", FAILURE)])
    letters = await engine.dead_letters("g")

    assert await engine.redrive(letters) == 3
    assert await other.redrive(letters) == 0
    assert await engine.dead_letters() == []
    got = await take(engine, "g", 3)
    assert texts(got) == ["a", "b", "c"]
    assert [d.attempts for d in got] == [0, 0, 0]
    assert [d.entry.position for d in got] == [letter.entry.position for letter in letters]
    assert [d.entry.subject for d in got] == ["events.a"] * 3
    await finish(engine, got)
    await nothing(world, engine, "g", "fine")


@case("seam")
async def redriven_may_die_again(world: World) -> None:
    """A redriven message is retried and dies like any other: one letter again, with its attempts from then on, which
    a repeat of the first redrive does not touch."""
    engine = await world.engine()
    await engine.declare([group(world)])
    [stored] = await publish(engine, "a")
    await engine.settle([Dead(await take_one(engine, "g"), "handler_error", FAILURE)])
    first = await engine.dead_letters()
    assert await engine.redrive(first) == 1
    await world.wait(world.moment)
    await engine.settle([RetryAfter(await take_one(engine, "g"), 0.0, FAILURE)])
    again = await take_one(engine, "g")
    assert again.attempts == 1
    await engine.settle([Dead(again, "timeout", FAILURE)])

    assert await engine.redrive(first) == 0
    assert await engine.discard(first) == 0
    [letter] = await engine.dead_letters()
    assert (letter.entry.position, letter.reason, letter.attempts) == (stored.position, "timeout", 2)
    assert await engine.redrive([letter]) == 1
    await finish(engine, [await take_one(engine, "g")])
    await nothing(world, engine, "g")


@case("seam")
async def discard_removes_for_good(world: World) -> None:
    """Discarded letters are gone once, with their number; neither discard nor redrive finds them again."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, *"abc")
    for delivery in await take(engine, "g", 3):
        await engine.settle([Dead(delivery, "handler_error", FAILURE)])
    a, b, c = await engine.dead_letters()
    assert await engine.discard([a, c]) == 2
    assert await engine.discard([a, c]) == 0
    assert await engine.redrive([a]) == 0
    assert [x.entry.position for x in await engine.dead_letters()] == [b.entry.position]
    await nothing(world, engine, "g")


@case("seam")
async def late_settle_is_ignored(world: World) -> None:
    """Whatever is said about a delivery whose lease somebody else has by now changes nothing and raises nothing."""
    slow, other = await world.engine(), await world.engine()
    await slow.declare([group(world)])
    await publish(slow, "a", "neighbour")
    stale = await take_one(slow, "g")
    await finish(other, [await take_one(other, "g")])
    held = await take_later(world, other, "g", world.lease)
    assert held.entry == stale.entry

    await slow.settle([Done(stale), Dead(stale, "rejected", FAILURE), RetryAfter(stale, 0.0, FAILURE), Release(stale)])
    await slow.extend([stale])
    assert await other.dead_letters() == []
    await nothing(world, slow, "g")
    await other.settle([Release(held)])
    again = await take_one(other, "g")
    assert (again.entry, again.attempts) == (stale.entry, 0)
    await finish(other, [again])
    await nothing(world, slow, "g")


@case("seam")
async def only_the_first_settle_counts(world: World) -> None:
    """A second word about the same delivery changes nothing, in any order, and never touches a neighbour."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await publish(engine, "done", "dead", "released", "neighbour")
    done, dead, released, neighbour = await take(engine, "g", 4)
    await engine.settle([Done(done), Dead(dead, "rejected", FAILURE)])
    await engine.settle([Dead(done, "rejected", FAILURE), RetryAfter(done, 0.0, FAILURE)])
    await engine.settle([Done(dead), Release(dead)])
    await engine.settle([Release(released, 2 * world.lease)])
    await engine.settle([Done(released), RetryAfter(released, 0.0, FAILURE)])

    assert [letter.entry.position for letter in await engine.dead_letters()] == [dead.entry.position]
    await finish(engine, [neighbour])
    again = await take_later(world, engine, "g", 2 * world.lease)
    assert (again.entry.body, again.attempts) == (b"released", 0)
    await finish(engine, [again])
    await nothing(world, engine, "g")
