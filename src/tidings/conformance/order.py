"""Order per key: over failures, restarts, and workers that take over from one another."""

from __future__ import annotations

from msgspec.structs import replace

from tidings.engine import Dead, Delivery, Engine, Group, Park, Release, RetryAfter

from .case import case, eventually
from .steps import FAILURE, finish, glance, group, nothing, publish, raising, take, take_one, texts
from .world import WiredWorld, World


def in_order(world: World) -> Group:
    """The group `g`, ordered."""
    return replace(group(world), ordered=True)


@case("seam")
async def ordered_goes_to_one_reader(world: World) -> None:
    """Of an ordered group nobody is handed anything while another reader holds a delivery; then the rest comes."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([in_order(world)])
    await publish(engine, "a", "b", "c")
    held = await take(engine, "g", 2)
    assert texts(held) == ["a", "b"]
    await nothing(world, other, "g")
    await other.stop_pulling("g")

    await finish(engine, held)
    await engine.stop_pulling("g")
    assert texts(await take(other, "g", 1)) == ["c"]


@case("seam")
async def ordered_comes_again_from_the_oldest(world: World) -> None:
    """After a reader of an ordered group has died with half of it, the next gets what is not done from the oldest on,
    and nothing newer before; what was done meanwhile does not come again."""
    doomed, other = await world.engine(), await world.engine()
    await doomed.declare([in_order(world)])
    await publish(doomed, *"abcdefgh")
    held = await take(doomed, "g", 5)
    await finish(doomed, [held[1], held[3]])
    await world.crash(doomed)
    await publish(other, "i")
    assert texts(await _take_over(world, other, 7)) == ["a", "c", "e", "f", "g", "h", "i"]


async def _take_over(world: World, engine: Engine, count: int) -> list[Delivery]:
    """The next deliveries, once the leases of whoever had some are over."""
    got: list[Delivery] = []

    async def more() -> bool:
        got.extend(await glance(world, engine, "g"))
        await world.wait(world.lease / 20)
        return len(got) >= count

    await eventually(more, f"{count} deliveries")
    return got


@case("seam")
async def handed_back_it_keeps_its_order(world: World) -> None:
    """What a reader of an ordered group hands back goes to the next one in its order, ahead of what is newer."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([in_order(world)])
    await publish(engine, "a", "b", "c", "d")
    held = await take(engine, "g", 3)
    await engine.settle([Release(delivery) for delivery in reversed(held)])
    await engine.stop_pulling("g")
    assert texts(await _take_over(world, other, 4)) == ["a", "b", "c", "d"]


@case("seam")
async def a_failure_is_counted_in_hand(world: World) -> None:
    """A delivery that is kept for another try has its attempt counted although nobody gave it up, and is still leased;
    its next reader knows of it."""
    doomed, other = await world.engine(), await world.engine()
    await doomed.declare([in_order(world)])
    await publish(doomed, "a")
    held = await take_one(doomed, "g")
    await doomed.keep(RetryAfter(held, 0.0, FAILURE))
    await doomed.keep(RetryAfter(held, 0.0, FAILURE))
    await doomed.keep(Release(held, 0.0))
    assert held.attempts == 2
    await nothing(world, other, "g")
    await other.stop_pulling("g")
    await world.crash(doomed)

    [again] = await _take_over(world, other, 1)
    assert (again.attempts, again.deliveries) == (2, 2)
    await finish(other, [again])
    with raising(Exception):
        await other.keep(Release(again))


@case("seam")
async def parked_waits_and_comes_back_in_order(world: World) -> None:
    """What is set aside waits, outlives its reader, and is counted and shown; put back it comes once, in order."""
    engine = await world.engine()
    await engine.declare([in_order(world)])
    await publish(engine, "a", "b", "c", "d")
    held = await take(engine, "g", 4)
    first = held[0].entry.position
    await engine.settle([Park(delivery, first) for delivery in reversed(held[1:])])
    await finish(engine, held[:1])
    entries = [delivery.entry for delivery in held[1:]]
    assert await engine.parked("g") == entries
    assert [await engine.parked("g", entries[0].position, 1), await engine.parked("g", entries[2].position)] == [
        [entries[1]],
        [],
    ]
    counts = (await engine.stats()).groups["g"]
    assert (counts.parked, counts.waiting, counts.leased, counts.dead) == (3, 0, 0, 0)
    state = (await engine.states(entries[0]))["g"]
    assert (state.state, state.detail, state.behind) == ("parked", f"behind {first}", first)
    await nothing(world, engine, "g")

    positions = [entry.position for entry in entries]
    assert await engine.unpark("g", positions[:2]) == 2
    assert await engine.unpark("g", positions) == 1
    assert await engine.unpark("g", positions) == 0
    again = await take(engine, "g", 3)
    assert texts(again) == ["b", "c", "d"]
    await finish(engine, again)
    await nothing(world, engine, "g")
    assert await engine.parked("g") == []


@case("seam")
async def put_back_comes_before_what_is_newer(world: World) -> None:
    """A redriven message of an ordered group comes before what the log has still to bring a new reader."""
    engine, other = await world.engine(), await world.engine()
    await engine.declare([in_order(world)])
    await publish(engine, "a", "b", "c")
    held = await take(engine, "g", 1)
    await engine.settle([Dead(held[0], "rejected", FAILURE)])
    await engine.close()
    assert await other.redrive(await other.dead_letters("g")) == 1
    assert texts(await _take_over(world, other, 3)) == ["a", "b", "c"]


@case("seam")
async def put_back_comes_after_what_is_older(world: World) -> None:
    """Messages that were set aside behind one whose reader has died, and are put back, come after that one, although it
    comes back only with the end of its lease."""
    doomed, other = await world.engine(), await world.engine()
    await doomed.declare([in_order(world)])
    await publish(doomed, *"abcdef")
    held = await take(doomed, "g", 5)
    await finish(doomed, held[:1])
    behind = held[1].entry.position
    await doomed.settle([Park(delivery, behind) for delivery in held[2:]])
    await world.crash(doomed)
    assert await other.unpark("g", [delivery.entry.position for delivery in held[2:]]) == 3
    assert texts(await _take_over(world, other, 5)) == ["b", "c", "d", "e", "f"]


@case("seam")
async def a_dropped_dead_letter_is_told(world: World) -> None:
    """Discarding a dead letter tells an ordered group so, once; other groups hear nothing of it."""
    engine = await world.engine()
    await engine.declare([in_order(world), group(world, "other")])
    await publish(engine, "a")
    for name in ("g", "other"):
        await engine.settle([Dead(await take_one(engine, name), "rejected", FAILURE)])
    letters = await engine.dead_letters()
    assert await engine.discard(letters) == 2
    assert await engine.discard(letters) == 0
    told = await take_one(engine, "g")
    assert (told.dropped, told.entry.position) == (True, letters[0].entry.position)
    await nothing(world, engine, "other")
    await finish(engine, [told])
    await nothing(world, engine, "g")


@case("seam", wired=True)
async def order_outlives_the_server(world: WiredWorld) -> None:
    """`kill -9` to the server under a reader with its hands full: what is not done comes again from the oldest on,
    never something newer first."""
    engine = await world.engine(patience=40.0)
    await engine.declare([in_order(world)])
    names = [f"{number:02d}" for number in range(40)]
    await publish(engine, *names)
    held = await take(engine, "g", 10)
    await world.wait(world.moment)
    await finish(engine, held[:4])
    await world.kill()
    await world.start()
    came: list[str] = []
    done: set[str] = set(names[:4])
    in_hand = {delivery.entry.position: delivery for delivery in held[4:]}

    async def more() -> bool:
        got = await glance(world, engine, "g", 5)
        came.extend(texts(got))
        in_hand.update((delivery.entry.position, delivery) for delivery in got)
        await engine.extend(list(in_hand.values()))
        return names[-1] in came

    await eventually(more, "the last one comes")
    fresh = [name for name in came if name not in done and name not in names[:10]]
    assert fresh == names[10:]
