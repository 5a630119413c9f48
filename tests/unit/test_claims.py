"""The claims ledger: where a group begins, what is unclaimed, and why a group does not get a message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidings
from tidings import claims
from tidings.claims import Ledger, Wish
from tidings.clock import ManualClock
from tidings.engine import Done, Outgoing
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.testing import TestBus, attached


@dataclass
class World:
    """A store, a connection to it, and what each group got."""

    store: MemoryStore = field(default_factory=lambda: MemoryStore(ManualClock()))
    got: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = MemoryEngine(self.store)

    async def publish(self, *subjects: str) -> None:
        await self.engine.publish([Outgoing(subject, b"1", {}, tidings.message.new_id()) for subject in subjects])

    async def declare(self, *wishes: Wish) -> Ledger:
        return await claims.declare(self.engine, wishes, lease=30)

    async def take(self, group: str) -> list[int]:
        """The positions that wait for the group; they are handled with that."""
        deliveries = await self.engine.pull(group, 1000, 0)
        await self.engine.settle([Done(delivery) for delivery in deliveries])
        return [delivery.entry.position for delivery in deliveries]

    async def unclaimed(self) -> dict[str, tuple[int, int]]:
        ledger, _ = await claims.load(self.engine)
        return {u.subject: (u.count, u.first) for u in await claims.unclaimed(self.engine, ledger)}

    async def explain(self, position: int) -> dict[str, str]:
        ledger, _ = await claims.load(self.engine)
        (entry,) = await self.engine.read([">"], position - 1, 1)
        states = await claims.explain(self.engine, ledger, entry)
        return {name: f"{state.state}: {state.detail}".removesuffix(": ") for name, state in states.items()}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.engine.open()
    yield world
    await world.engine.close()


async def test_the_first_group_gets_what_waited(world: World) -> None:
    """Unclaimed events wait for the first group that comes for them."""
    await world.publish("events.a", "events.b", "events.a")
    await world.declare(Wish("g", ("events.a",)))
    assert await world.take("g") == [1, 3]
    await world.publish("events.a")
    assert await world.take("g") == [4]


async def test_a_late_group_of_claimed_subjects_begins_now(world: World) -> None:
    """History that another group claims is not dealt out again by adding a handler."""
    await world.declare(Wish("first", ("events.>",)))
    await world.publish("events.a", "events.b")
    await world.declare(Wish("late", ("events.a",)))
    assert await world.take("late") == []
    await world.publish("events.a")
    assert await world.take("late") == [3]
    assert await world.take("first") == [1, 2, 3]


async def test_groups_declared_together_all_get_the_backlog(world: World) -> None:
    """The order of handlers in a file decides nothing."""
    await world.publish("events.a", "events.a")
    await world.declare(Wish("one", ("events.a",)), Wish("two", ("events.>",)), Wish("three", ("events.*",)))
    assert [await world.take(group) for group in ("one", "two", "three")] == [[1, 2]] * 3


async def test_a_wildcard_group_skips_what_others_claim(world: World) -> None:
    """Of partly claimed subjects a new group gets the part that nobody had."""
    await world.declare(Wish("a", ("events.a",)))
    await world.publish("events.a", "events.b", "events.a", "events.c", "events.b")
    await world.declare(Wish("all", ("events.>",)))
    assert await world.take("all") == [2, 4, 5]
    await world.publish("events.a", "events.b")
    assert await world.take("all") == [6, 7]


async def test_a_group_that_began_late_leaves_the_rest_unclaimed(world: World) -> None:
    """`latest` claims nothing of the past: the next group gets exactly what lies before it."""
    await world.publish("events.a", "events.a")
    await world.declare(Wish("tail", ("events.a",), "latest"))
    await world.publish("events.a")
    assert await world.take("tail") == [3]
    assert await world.unclaimed() == {"events.a": (2, 1)}
    await world.declare(Wish("work", ("events.*",)))
    assert await world.take("work") == [1, 2]
    assert await world.unclaimed() == {}


async def test_earliest_gets_everything_that_is_stored(world: World) -> None:
    """Whoever claims what."""
    await world.declare(Wish("first", ("events.>",)))
    await world.publish("events.a", "events.b")
    await world.declare(Wish("report", ("events.>",), "earliest"))
    assert await world.take("report") == [1, 2]


async def test_an_existing_group_stays_where_it_is(world: World) -> None:
    """Restarting, also with another `start`, moves nothing and writes nothing."""
    await world.publish("events.a")
    await world.declare(Wish("g", ("events.a",)))
    assert await world.take("g") == [1]
    _, before = await claims.load(world.engine)
    await world.declare(Wish("g", ("events.a",), "earliest"))
    await world.declare(Wish("g", ("events.a",), "latest"))
    _, after = await claims.load(world.engine)
    assert before == after
    assert await world.take("g") == []


async def test_declaring_never_takes_away(world: World) -> None:
    """An old process that knows fewer filters and groups restarts beside a new one, and the new one loses nothing."""
    new = [Wish("g", ("events.a", "events.b"), emits=("events.c",)), Wish("added", ("events.a",))]
    await world.declare(*new)
    before, _ = await claims.load(world.engine)
    await world.declare(Wish("g", ("events.a",)))
    after, _ = await claims.load(world.engine)
    assert before == after
    await world.publish("events.b", "events.a")
    assert await world.take("g") == [1, 2]
    assert await world.take("added") == [2]


async def test_a_filter_that_is_added_reaches_back_to_what_nobody_had(world: World) -> None:
    """A handler that learns another subject gets its unclaimed events, and its own are not repeated."""
    await world.publish("events.a", "events.b")
    await world.declare(Wish("g", ("events.a",)))
    assert await world.take("g") == [1]
    await world.declare(Wish("g", ("events.a", "events.b")))
    assert await world.take("g") == [2]
    await world.declare(Wish("g", ("events.>",)))
    assert await world.take("g") == []


async def test_racing_declarers_agree(world: World) -> None:
    """Many processes that start at once end with one ledger, and each group has its messages once."""
    await world.publish("events.a", "events.a")
    engines = [MemoryEngine(world.store) for _ in range(8)]
    for engine in engines:
        await engine.open()
    wishes = [Wish("one", ("events.a",)), Wish("two", ("events.>",))]
    done = await asyncio.gather(*(claims.declare(engine, wishes, lease=30) for engine in engines))
    assert all(ledger == done[0] for ledger in done)
    assert [await world.take("one"), await world.take("two")] == [[1, 2], [1, 2]]


async def test_racing_declarers_of_different_groups_lose_none(world: World) -> None:
    """Two applications on one namespace start together: both are in the ledger, whoever wrote first."""
    engines = [MemoryEngine(world.store) for _ in range(8)]
    for engine in engines:
        await engine.open()
    await asyncio.gather(
        *(claims.declare(engine, [Wish(f"g{n}", ("events.>",))], lease=30) for n, engine in enumerate(engines))
    )
    ledger, revision = await claims.load(world.engine)
    assert sorted(ledger.groups) == [f"g{n}" for n in range(8)]
    assert revision == 8
    await world.publish("events.a")
    assert [await world.take(f"g{n}") for n in range(8)] == [[1]] * 8


async def test_a_crash_between_ledger_and_engine_is_mended(world: World) -> None:
    """The ledger knows the group, the engine does not: anybody's next declaration makes it, with its backlog."""
    await world.publish("events.a")
    crashed = Ledger(groups={"g": claims.Claimant((tidings.engine.Claim("events.a", 1),))})
    await world.engine.register("claims", msgspec.json.encode(crashed), 0)
    await world.declare(Wish("other", ("events.b",)))
    assert await world.take("g") == [1]


async def test_a_message_between_reading_and_writing_is_not_lost(world: World) -> None:
    """What is published while a group is being declared belongs to it."""
    await world.declare(Wish("first", ("events.>",)))
    task = asyncio.ensure_future(world.declare(Wish("late", ("events.>",))))
    before = world.store.stats().last
    while not task.done():
        await world.publish("events.a")
        await asyncio.sleep(0)
    await task
    ledger, _ = await claims.load(world.engine)
    since = ledger.groups["late"].claims[0].since
    assert since > before
    assert await world.take("late") == list(range(since, world.store.stats().last + 1))


async def test_unclaimed_is_exact(world: World) -> None:
    """A view by subject with count and oldest position; what a reader has is not alarmed."""
    assert await world.unclaimed() == {}
    await world.publish("events.a", "events.b", "events.a", "events.c")
    assert await world.unclaimed() == {"events.a": (2, 1), "events.b": (1, 2), "events.c": (1, 4)}
    await claims.declare(world.engine, [Wish("g", ("events.a",))], lease=30, readers={"web": ("events.c",)})
    assert await world.unclaimed() == {"events.b": (1, 2)}


async def test_readers_add_up_and_hold_nothing_back(world: World) -> None:
    """A reader of another version adds its subjects, and a group that comes later still gets the backlog."""
    await world.publish("events.a")
    await claims.declare(world.engine, [], lease=30, readers={"web": ("events.a",)})
    await claims.declare(world.engine, [], lease=30, readers={"web": ("events.b",)})
    ledger, _ = await claims.load(world.engine)
    assert ledger.readers == {"web": ("events.a", "events.b")}
    await world.declare(Wish("g", ("events.a",)))
    assert await world.take("g") == [1]


async def test_a_removed_groups_history_stays_claimed(world: World) -> None:
    """Removing a group does not make a thousand alarms of what it had handled."""
    await world.declare(Wish("g", ("events.a",)))
    await world.publish("events.a")
    await claims.change(world.engine, "g", removed=True)
    assert await world.unclaimed() == {}
    with pytest.raises(tidings.Conflict):
        await world.take("g")
    await world.declare(Wish("successor", ("events.a",)))
    assert await world.take("successor") == []


async def test_a_group_that_returns_does_not_get_its_history_again(world: World) -> None:
    """Removed and declared anew, it begins now; what it had claimed stays claimed."""
    await world.declare(Wish("g", ("events.a",)))
    await world.publish("events.a", "events.b", "events.a")
    assert await world.take("g") == [1, 3]
    await claims.change(world.engine, "g", removed=True)
    await world.declare(Wish("g", ("events.*",)))
    assert await world.take("g") == [2], "only what it had never claimed"
    assert await world.unclaimed() == {}
    await world.publish("events.a")
    assert await world.take("g") == [4]
    await world.declare(Wish("g", ("events.*", "events.x.y")))
    assert await world.take("g") == []


async def test_pausing_is_kept_over_restarts(world: World) -> None:
    """A paused group gets nothing until a person resumes it, however often its processes start."""
    await world.declare(Wish("g", ("events.a",)))
    await claims.change(world.engine, "g", paused=True)
    await world.declare(Wish("g", ("events.a",)))
    await world.publish("events.a")
    assert await world.take("g") == []
    await claims.change(world.engine, "g", paused=False)
    assert await world.take("g") == [1]


async def test_changing_an_unknown_group_names_the_known_ones(world: World) -> None:
    """A misspelt group is answered with those there are; a removed one is none of them."""
    with pytest.raises(tidings.ConfigError, match="no group 'x'; there are: none"):
        await claims.change(world.engine, "x", paused=True)
    await world.declare(Wish("save", ("events.a",)), Wish("old", ("events.a",)))
    await claims.change(world.engine, "old", removed=True)
    with pytest.raises(tidings.ConfigError, match=r"there are: save$"):
        await claims.change(world.engine, "old", paused=True)


async def test_an_unknown_layout_is_refused(world: World) -> None:
    """A ledger of another version is neither read nor overwritten."""
    await world.engine.register("claims", b'{"layout": 2, "groups": {}}', 0)
    with pytest.raises(tidings.ConfigError, match="layout 2, this one knows 1"):
        await world.declare(Wish("g", ("events.a",)))
    record = await world.engine.recall("claims")
    assert record is not None
    assert record.revision == 1


async def test_explain_says_why(world: World) -> None:
    """For each group its state, and for those that do not want the message the reason, in a sentence."""
    await world.publish("events.a")
    await world.declare(Wish("first", ("events.a",)), Wish("b", ("events.b", "events.c")), Wish("old", ("events.a",)))
    await world.declare(Wish("late", ("events.a",)))
    await world.publish("events.a")
    await claims.change(world.engine, "old", removed=True)
    (delivery, _) = await world.engine.pull("first", 2, 0)
    await world.engine.settle([Done(delivery)])
    first = await world.explain(1)
    assert first == {
        "first": "done",
        "b": "not wanted: it listens to events.b, events.c",
        "old": "not wanted: the group was removed",
        "late": "not wanted: it began with position 2, after this message, "
        "because first and old had claimed the subject",
    }
    second = await world.explain(2)
    assert second["first"].startswith("leased: by memory, for 30 s more")
    assert second["late"] == "waiting"


async def test_explain_of_a_skipped_message(world: World) -> None:
    """A wildcard group that skips what an older claim covers names the older one."""
    await world.declare(Wish("a", ("events.a",)))
    await world.publish("events.b", "events.a")
    await world.declare(Wish("all", ("events.>",)))
    assert (await world.explain(2))["all"] == "not wanted: it was declared later, because a had claimed the subject"
    assert (await world.explain(1))["all"] == "waiting"


SUBJECTS = ["events.a", "events.b", "events.c.d"]
FILTERS = ["events.a", "events.b", "events.*", "events.>", "events.c.*"]
moves: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(SUBJECTS)),
    st.tuples(
        st.just("declare"),
        st.tuples(st.sampled_from("wxyz"), st.lists(st.sampled_from(FILTERS), min_size=1, max_size=2, unique=True)),
    ),
)


@given(st.lists(moves, max_size=14))
@settings(max_examples=150, deadline=None)
def test_every_event_is_got_by_the_first_claim_and_never_twice(history: list[tuple[str, Any]]) -> None:
    """Whatever is published and declared in whatever order: an event goes to every group that claims its subject when
    it is published, else to all of the first declaration that claims it; no group gets one twice; the rest is
    unclaimed."""
    asyncio.run(play(history))


async def play(history: list[tuple[str, Any]]) -> None:
    world = World()
    await world.engine.open()
    subjects: list[str] = []
    filters: dict[str, list[str]] = {}
    expected: dict[str, set[int]] = {}
    owned: set[int] = set()

    def covers(group: str, subject: str) -> bool:
        return any(tidings.subjects.matches(filter, subject) for filter in filters[group])

    for move, argument in history:
        if move == "publish":
            subjects.append(argument)
            await world.publish(argument)
            for group in filters:
                if covers(group, argument):
                    expected[group].add(len(subjects))
                    owned.add(len(subjects))
        else:
            group, wanted = argument
            filters[group] = [*filters.get(group, []), *wanted]
            await world.declare(Wish(group, tuple(tidings.subjects.normalise(wanted))))
            new = {n for n, subject in enumerate(subjects, 1) if covers(group, subject)} - owned
            expected.setdefault(group, set()).update(new)
            owned |= new
    for group, positions in expected.items():
        got = await world.take(group)
        assert sorted(got) == sorted(positions)
    free = [subject for n, subject in enumerate(subjects, 1) if n not in owned]
    assert {subject: count for subject, (count, _) in (await world.unclaimed()).items()} == {
        subject: free.count(subject) for subject in set(free)
    }


async def test_a_bus_declares_all_its_groups_whatever_it_runs() -> None:
    """A process that runs one group claims for all, so that scaling never loses a backlog."""
    bus = tidings.Bus("todo")
    seen: list[str] = []

    @bus.on("events.a", group="one")
    async def one(n: int) -> None:
        seen.append("one")

    @bus.on("events.a", group="two")
    async def two(n: int) -> None:
        seen.append("two")

    async with TestBus(bus, groups=["one"]) as t:
        await bus.publish("events.a", 1)
        with pytest.raises(tidings.testing.NotQuiet):
            await t.settle(0.05)
        assert seen == ["one"]
        assert t.store.stats().groups["two"].waiting == 1


async def test_two_applications_with_one_group_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """The one that comes second names the first; a restart of either alone is silent, and so is a replica."""
    store = MemoryStore(ManualClock())

    async def started(name: str) -> list[str]:
        bus = tidings.Bus(name, url="memory:")

        @bus.on(f"events.{name}", group="save")
        async def save(body: dict[str, Any]) -> None: ...

        caplog.clear()
        engine = MemoryEngine(store)
        await engine.open()
        async with attached(bus, engine, store.clock):
            await engine.close()
        return [record.getMessage() for record in caplog.records]

    assert await started("hello") == await started("hello") == []
    (told,) = await started("two")
    assert "group 'save' is also that of the application 'hello'" in told
    assert "TIDINGS_NAMESPACE" in told
    assert await started("two") == []
    assert len(await started("hello")) == 1


async def test_a_ledger_of_before_its_applications_were_remembered(world: World) -> None:
    """It is read as it is, its groups belong to nobody, and the next declaration says whose they are."""
    await world.declare(Wish("g", ("events.a",)))
    ledger, revision = await claims.load(world.engine)
    stored = msgspec.to_builtins(ledger)
    del stored["groups"]["g"]["app"]
    await world.engine.register("claims", msgspec.json.encode(stored), revision)
    wishes = [Wish("g", ("events.a",))]
    before, _ = await claims.load(world.engine)
    assert claims.taken(before, wishes, "todo") == {}
    await claims.declare(world.engine, wishes, lease=30, app="todo")
    after, _ = await claims.load(world.engine)
    assert claims.taken(after, wishes, "todo") == {}
    assert claims.taken(after, wishes, "shop") == {"g": "todo"}
