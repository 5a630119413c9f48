"""Retention: what goes, what stays, and what is still possible when the store is full."""

from __future__ import annotations

import random
from collections import Counter

from tidings import claims
from tidings.claims import Wish
from tidings.engine import Claim, Dead, Delivery, Done, Engine, Group, Release, RetryAfter
from tidings.errors import StoreFull
from tidings.retention import Janitor, oldest_whole
from tidings.settings import Settings

from .case import case, eventually
from .steps import FAILURE, finish, glance, group, message, nothing, publish, raising, take, take_one, texts
from .world import World

SEED = 20261122
ALL = 1_000_000
DAY = 86400.0


def janitor(world: World, engine: Engine, **settings: float | None) -> Janitor:
    """A janitor that nobody has started."""
    return Janitor(engine, [], Settings(lease=world.lease, **settings), clock=world.clock)  # type: ignore[arg-type]


async def declare(world: World, engine: Engine, *wishes: Wish) -> None:
    """As a bus does it."""
    await claims.declare(engine, wishes, lease=world.lease)


async def stored(engine: Engine) -> list[str]:
    """The bodies in the log."""
    return [entry.body.decode() for entry in await engine.read(["events.>"], 0, ALL)]


async def purged(engine: Engine, filter: str, first: int, below: int, *left: str) -> None:
    """Purging leaves exactly this, as soon as acknowledgements have counted."""

    async def so() -> bool:
        await engine.purge(filter, first, below)
        return await stored(engine) == list(left)

    await eventually(so, f"a purge leaves {' '.join(left) or 'nothing'}")


@case("seam")
async def purge_leaves_what_is_open(world: World) -> None:
    """A purge removes what every group is done with; what waits, is leased, comes back later or was never handed out
    stays, however far the purge is asked to go, and is handled afterwards."""
    engine = await world.engine()
    await engine.declare([group(world), group(world, "away")])
    await publish(engine, *"abcdefg")
    await finish(engine, await take(engine, "away", 7))
    done, later, released, held, dead, *others = await take(engine, "g", 6)
    await finish(engine, [done])
    await engine.settle([RetryAfter(later, world.lease / 2, FAILURE), Release(released, world.lease / 2)])
    await engine.settle([Dead(dead, "rejected", FAILURE), Done(others[0])])
    await engine.extend([held])

    async def first_went() -> bool:
        await engine.purge("events.>", 1, ALL)
        return (await stored(engine))[0] == "b"

    await eventually(first_went, "what is done goes")
    assert {"b", "c", "d", "g"} <= set(await stored(engine))
    seen: Counter[str] = Counter()
    while set(seen) != {"b", "c", "d", "g"}:
        await engine.purge("events.>", 1, ALL)
        taken = await glance(world, engine, "g")
        seen.update(texts(taken))
        await finish(engine, taken)
        if not taken:
            await world.wait(world.lease / 3)
    await purged(engine, "events.>", 1, ALL)
    assert [letter.entry.body for letter in await engine.dead_letters()] == [b"e"]


@case("seam")
async def purge_keeps_to_its_range(world: World) -> None:
    """Only what matches the filter and stands inside the range goes, below as above it."""
    engine = await world.engine()
    for body in "abcdef":
        await publish(engine, body, subject=f"events.{'xy'[body in 'ace']}")
    places = {entry.body.decode(): entry.position for entry in await engine.read(["events.>"], 0, 10)}
    assert await engine.purge("events.x", places["c"], places["f"]) == 1
    assert await stored(engine) == ["a", "b", "c", "e", "f"]
    assert await engine.purge("events.*", places["b"], places["e"]) == 2
    assert await stored(engine) == ["a", "e", "f"]
    assert await engine.purge("events.>", places["b"], places["e"]) == 0
    assert await engine.purge("events.nothing", 1, ALL) == 0
    assert await engine.purge("events.>", 1, ALL) == 3
    stats = await engine.stats()
    assert (stats.messages, stats.first, stats.last) == (0, places["f"] + 1, places["f"])


@case("seam")
async def group_holds_its_own_subjects_only(world: World) -> None:
    """A group that is away keeps everything on its subjects, and nothing on others."""
    engine = await world.engine()
    await engine.declare([group(world, "away", "events.rare"), group(world, "busy")])
    await publish(engine, "r1", subject="events.rare")
    await publish(engine, "a", "b")
    await publish(engine, "r2", subject="events.rare")
    await publish(engine, "c")
    await finish(engine, await take(engine, "busy", 5))
    await purged(engine, "events.>", 1, ALL, "r1", "r2")
    assert texts(await take(engine, "away", 2)) == ["r1", "r2"]


@case("seam")
async def forgotten_group_holds_nothing(world: World) -> None:
    """What only a group wanted that was removed may go."""
    engine = await world.engine()
    await engine.declare([group(world), group(world, "other")])
    await publish(engine, "a", "b")
    await finish(engine, await take(engine, "other", 2))
    assert await engine.purge("events.>", 1, ALL) == 0
    await engine.forget("g")
    await purged(engine, "events.>", 1, ALL)


@case("seam")
async def dead_letters_outlive_their_entries(world: World) -> None:
    """A dead letter is whole after its entry has gone from the log, and so is what its redrive delivers; also with a
    body as large as may be, with headers, and when it dies again."""
    engine = await world.engine()
    await engine.declare([group(world)])
    await engine.publish([message("small"), message(b"x" * (engine.max_message - 2000), headers={"ce-id": "7"})])
    await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in await take(engine, "g", 2)])
    for _ in range(2):

        async def swept() -> bool:
            await engine.purge("events.>", 1, ALL)
            return (await engine.stats()).messages == 0

        await eventually(swept, "the entries go")
        letters = await engine.dead_letters()
        assert [len(letter.entry.body) for letter in letters] == [5, engine.max_message - 2000]
        assert await engine.redrive(letters) == 2
        again = await take(engine, "g", 2)
        assert sorted(len(delivery.entry.body) for delivery in again) == [5, engine.max_message - 2000]
        assert {delivery.entry.headers.get("ce-id") for delivery in again} == {None, "7"}
        await engine.settle([Dead(delivery, "rejected", FAILURE) for delivery in again])


@case("seam")
async def claim_added_before_a_purge(world: World) -> None:
    """What a claim added to a live group has handed over is the group's, even if the log is purged right after."""
    engine = await world.engine()
    await engine.declare([group(world, "g", "events.a"), group(world, "other")])
    await publish(engine, "b1", "b2", subject="events.b")
    await finish(engine, await take(engine, "other", 2))
    await engine.declare([Group("g", (Claim("events.a"), Claim("events.b")), lease=world.lease)])
    await engine.purge("events.>", 1, ALL)
    assert sorted(texts(await take(engine, "g", 2))) == ["b1", "b2"]


@case("seam")
async def nothing_unhandled_goes(world: World) -> None:
    """Under random work (failures, hand-backs, dead letters, lost leases, crashes, a group that comes late) and a purge
    of everything all the time, each group still gets every message it wants, and ends it exactly once."""
    chance = random.Random(SEED)  # noqa: S311
    publisher = await world.engine()
    await publisher.declare([group(world, "all"), group(world, "b", "events.b")])
    readers = {name: await world.engine() for name in ("all", "b", "late")}
    wanted: dict[str, set[int]] = {"all": set(), "b": set(), "late": set()}
    ended: dict[str, set[int]] = {"all": set(), "b": set(), "late": set()}

    for turn in range(60):
        subject = chance.choice(["events.a", "events.b"])
        for receipt in await publish(publisher, *"xyz", subject=subject):
            wanted["all"].add(receipt.position)
            if subject == "events.b":
                wanted["b"].add(receipt.position)
            elif turn >= 30:
                wanted["late"].add(receipt.position)
        if turn == 29:
            since = (await publisher.stats()).last + 1
            await publisher.declare([Group("late", (Claim("events.a", since),), lease=world.lease)])
        await _work(world, chance, readers, ended, late=turn >= 30)
        await publisher.purge(chance.choice(["events.>", "events.a", "events.*"]), 1, ALL)
    while ended != wanted:
        await _work(world, chance, readers, ended, late=True)
        await publisher.purge("events.>", 1, ALL)
        await world.wait(world.lease / 3)
    await purged(publisher, "events.>", 1, ALL)


async def _work(
    world: World, chance: random.Random, readers: dict[str, Engine], ended: dict[str, set[int]], *, late: bool
) -> None:
    for name in readers:
        if name == "late" and not late:
            continue
        for delivery in await _some(world, chance, readers[name], name):
            place = delivery.entry.position
            assert place not in ended[name], f"{place} came back to {name}"
            outcome = _outcome(world, chance, delivery)
            if outcome is None:
                continue
            if isinstance(outcome, Done | Dead):
                ended[name].add(place)
            await readers[name].settle([outcome])
        if chance.random() < 0.05:
            await world.crash(readers[name])
            readers[name] = await world.engine()


async def _some(world: World, chance: random.Random, engine: Engine, name: str) -> list[Delivery]:
    return await glance(world, engine, name, 8) if chance.random() < 0.3 else await engine.pull(name, 8, 0.0)


def _outcome(world: World, chance: random.Random, delivery: Delivery) -> Done | Dead | RetryAfter | Release | None:
    throw = chance.random()
    if throw < 0.05:
        return None  # forgotten: its lease ends
    if throw < 0.15:
        return RetryAfter(delivery, world.lease / 4, FAILURE)
    if throw < 0.25:
        return Release(delivery, world.lease / 4)
    return Dead(delivery, "rejected", FAILURE) if throw < 0.3 else Done(delivery)


@case("seam")
async def retention_is_an_upper_bound(world: World) -> None:
    """What every group has handled goes when it is older than `retention`, and not before; `never` keeps it. Of
    several janitors one has the turn."""
    engine = await world.engine()
    await declare(world, engine, Wish("g", ("events.>",)), Wish("h", ("events.>",)))
    await publish(engine, "a", "b")
    for name in "gh":
        await finish(engine, await take(engine, name, 2))
    keeper = janitor(world, engine, retention=None)
    assert await keeper.run_once(world.clock.time() + 1000 * DAY) == 0
    keeper.settings = Settings(lease=world.lease)
    assert await keeper.run_once(world.clock.time() + 6.9 * DAY) == 0
    assert await janitor(world, await world.engine()).run_once(world.clock.time() + 8 * DAY) is None

    async def gone() -> bool:
        await keeper.run_once(world.clock.time() + 7.1 * DAY)
        return not await stored(engine)

    await eventually(gone, "what is handled and old goes")


@case("seam")
async def unclaimed_waits_and_expires(world: World) -> None:
    """Unclaimed events outlive those that are handled, on the same subject too, until `retention_unclaimed`; `never`
    keeps them; and the first group that comes for them in time gets them all."""
    engine = await world.engine()
    await publish(engine, "early")
    await publish(engine, "lonely", subject="events.b")
    await declare(world, engine, Wish("g", ("events.a",), start="latest"))
    await publish(engine, "x", "y")
    await finish(engine, await take(engine, "g", 2))
    keeper = janitor(world, engine)

    async def handled_went() -> bool:
        await keeper.run_once(world.clock.time() + 29 * DAY)
        return await stored(engine) == ["early", "lonely"]

    await eventually(handled_went, "what is handled goes, what is unclaimed stays")
    await declare(world, engine, Wish("late", ("events.>",)))
    assert texts(await take(engine, "late", 2)) == ["early", "lonely"]
    await publish(engine, "more", subject="events.c")
    await keeper.run_once(world.clock.time() + 31 * DAY)
    assert await stored(engine) == ["early", "lonely", "more"], "claimed now, and not handled"


@case("seam")
async def unclaimed_goes_in_the_end(world: World) -> None:
    """Unclaimed events go when they are older than `retention_unclaimed`, also where a reader follows them, and by no
    other rule; `never` keeps them."""
    engine = await world.engine()
    await claims.declare(engine, [], lease=world.lease, readers={"page": ("events.read",)})
    await publish(engine, "read", subject="events.read")
    await publish(engine, "typo", subject="events.tpyo")
    keeper = janitor(world, engine, retention_unclaimed=None)
    assert await keeper.run_once(world.clock.time() + 1000 * DAY) == 0
    keeper.settings = Settings(retention=None)
    assert await keeper.run_once(world.clock.time() + 29 * DAY) == 0
    assert await keeper.run_once(world.clock.time() + 31 * DAY) == 2
    assert await stored(engine) == []


@case("seam")
async def group_away_for_long_finds_everything(world: World) -> None:
    """A group whose workers come back after a year finds every message that came meanwhile."""
    engine = await world.engine()
    await declare(world, engine, Wish("busy", ("events.>",)), Wish("away", ("events.a",)))
    await publish(engine, *"abc")
    await publish(engine, "other", subject="events.b")
    await finish(engine, await take(engine, "busy", 4))
    keeper = janitor(world, engine)

    async def other_went() -> bool:
        await keeper.run_once(world.clock.time() + 365 * DAY)
        return await stored(engine) == ["a", "b", "c"]

    await eventually(other_went, "only what the group does not want goes")
    assert texts(await take(engine, "away", 3)) == ["a", "b", "c"]


@case("seam")
async def removed_group_holds_no_retention(world: World) -> None:
    """What was claimed by a group that is removed counts as handled, not as unclaimed."""
    engine = await world.engine()
    await declare(world, engine, Wish("g", ("events.>",)))
    await publish(engine, "a")
    keeper = janitor(world, engine)
    assert await keeper.run_once(world.clock.time() + 20 * DAY) == 0
    await claims.change(engine, "g", removed=True)
    assert await keeper.run_once(world.clock.time() + 20 * DAY) == 1


@case("seam")
async def cut_off_declaration_is_mended_first(world: World) -> None:
    """A group that stands in the ledger but not yet in the engine, because its process died in between, loses nothing
    to the janitor."""
    engine, other = await world.engine(), await world.engine()
    await publish(engine, "a")
    await declare(world, engine, Wish("g", ("events.>",)))
    await engine.forget("g")
    assert await janitor(world, other).run_once(world.clock.time() + 1000 * DAY) == 0
    assert texts(await take(engine, "g", 1)) == ["a"]


@case("seam")
async def purge_is_noted_for_late_readers(world: World) -> None:
    """Whoever resumes from a place below which something may be gone can know it; on other subjects nothing changes."""
    engine = await world.engine()
    await declare(world, engine, Wish("g", ("events.a",)))
    await publish(engine, "b", subject="events.b")
    [last] = await publish(engine, "a")
    await finish(engine, [await take_one(engine, "g")])
    assert await oldest_whole(engine, ["events.a"]) == 1
    keeper = janitor(world, engine)

    async def went() -> bool:
        await keeper.run_once(world.clock.time() + 8 * DAY)
        return await stored(engine) == ["b"]

    await eventually(went, "what is handled goes")
    assert await oldest_whole(engine, ["events.c", "events.*"]) == last.position + 1
    assert await oldest_whole(engine, ["events.b"]) == 1


@case("seam")
async def full_store_refuses_publishers_only(world: World) -> None:
    """With 90 % of the store full of unhandled messages publishers get `StoreFull`; failing, dead-lettering, redrive,
    extending and pulling go on; and handling makes room again, the oldest going first."""
    await (await world.engine()).declare([group(world)])
    await world.limit(1_000_000)
    engine = await world.engine()
    await declare(world, engine, Wish("g", ("events.>",)))
    body, count = b"x" * 50_000, 0
    with raising(StoreFull):
        for _ in range(30):
            await engine.publish([message(body)])
            count += 1
    assert 15 <= count <= 18
    first, second, third = await take(engine, "g", 3)
    await engine.settle([Dead(first, "rejected", FAILURE), RetryAfter(second, 0.0, FAILURE)])
    await engine.extend([third])
    await engine.settle([Release(third)])
    assert await engine.redrive(await engine.dead_letters()) == 1
    with raising(StoreFull):
        await engine.publish([message(body)])
    keeper = janitor(world, engine)
    await keeper.run_once()
    ended: set[int] = set()
    while len(ended) < count:
        taken = await take(engine, "g", 1)
        await finish(engine, taken)
        ended.update(delivery.entry.position for delivery in taken)

    async def room_again() -> bool:
        await keeper.run_once()
        try:
            await (await world.engine()).publish([message(body)])
        except StoreFull:
            return False
        return True

    await eventually(room_again, "handled messages make room")
    left = [entry.position for entry in await engine.read(["events.>"], 0, 100)]
    assert left == list(range(left[0], count + 2)), "the oldest went first"
    assert [delivery.entry.position for delivery in await take(engine, "g", 1)] == left[-1:]
    await nothing(world, engine, "g")
