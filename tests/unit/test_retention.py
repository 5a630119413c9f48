"""The janitor on a store in memory: what it lets go, when, and what it writes down."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import tidings
from tidings import claims
from tidings.claims import Ledger, Wish
from tidings.clock import ManualClock
from tidings.engine import Claim, Done, Outgoing
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.errors import ConfigError, StoreFull
from tidings.retention import Book, Janitor, Sweep, claimed, oldest_whole, position_at
from tidings.settings import Settings, load
from tidings.testing import TestBus

DAY = 86400.0


class Scene:
    """A store, a connection to it, and a janitor that nobody has started."""

    def __init__(self, *, limit: int = -1, **given: Any) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock, limit=limit)
        self.engine = MemoryEngine(self.store)
        self.janitor = Janitor(self.engine, [], Settings(**given), clock=self.clock)

    async def publish(self, subject: str = "events.a", size: int = 1) -> int:
        [stored] = await self.engine.publish([Outgoing(subject, b"x" * size, {}, tidings.message.new_id())])
        return stored.position

    async def declare(self, name: str, *filters: str, start: Any = "unclaimed") -> None:
        await claims.declare(self.engine, [Wish(name, filters, start)], lease=30.0)

    async def handle(self, name: str, limit: int = 1000) -> list[int]:
        deliveries = await self.engine.pull(name, limit, 0.0)
        await self.engine.settle([Done(delivery) for delivery in deliveries])
        return [delivery.entry.position for delivery in deliveries]

    async def pass_by(self, seconds: float) -> None:
        """Let time pass, and let what it wakes come to its end at each of the janitor's looks."""
        end = self.clock.monotonic() + seconds
        while (rest := end - self.clock.monotonic()) > 0:
            for _ in range(200):
                await asyncio.sleep(0)
            await self.clock.advance(min(rest, 10.0 if seconds < DAY / 2 else 600.0))
        for _ in range(200):
            await asyncio.sleep(0)

    async def left(self) -> list[int]:
        return [entry.position for entry in await self.engine.read([">"], 0, 100_000)]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.engine.open()
    yield scene
    await scene.engine.close()


async def test_a_running_janitor_sweeps_by_itself(scene: Scene) -> None:
    """Started, it lets go of what is handled and old, and keeps on after trouble."""
    await scene.declare("g", "events.>")
    await scene.publish()
    await scene.handle("g")
    scene.janitor.start()
    await scene.pass_by(7 * DAY - 60)
    assert await scene.left() == [1]
    await scene.pass_by(300)
    assert await scene.left() == []
    await scene.janitor.stop()
    await scene.janitor.stop()


async def test_trouble_is_said_and_the_next_look_tries_again(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A namespace of another version is swept by nobody; when it is mended the sweeping goes on."""
    revision = await scene.engine.register("claims", b'{"layout": 99}', 0)
    scene.janitor.start()
    await scene.pass_by(30)
    assert "old events are not swept out of the log at the moment" in caplog.text
    await scene.engine.register("claims", b'{"layout": 1}', revision)
    await scene.declare("g", "events.>")
    await scene.publish()
    await scene.handle("g")
    await scene.pass_by(8 * DAY)
    assert await scene.left() == []
    await scene.janitor.stop()


async def test_the_turn_goes_over_to_the_next_one(scene: Scene) -> None:
    """While one janitor has the turn others leave it alone; when it is gone another one takes over."""
    other = Janitor(scene.engine, [], Settings(), clock=scene.clock)
    assert await scene.janitor.run_once() == 0
    assert await other.run_once() is None
    await scene.clock.advance(80)
    assert await scene.janitor.run_once() == 0
    await scene.clock.advance(80)
    assert await other.run_once() is None
    await scene.clock.advance(20)
    assert await other.run_once() == 0
    assert await scene.janitor.run_once() is None


async def test_under_pressure_the_oldest_handled_go_first() -> None:
    """At 80 % full handled entries go before their time, no more than needed; what waits is not touched."""
    scene = Scene(limit=100_000)
    await scene.engine.open()
    await scene.declare("g", "events.>")
    for _ in range(85):
        await scene.publish(size=1000)
    await scene.handle("g", 60)
    removed = await scene.janitor.run_once()
    left = await scene.left()
    assert removed is not None
    assert 15 <= removed <= 35
    assert left == list(range(removed + 1, 86))
    assert await scene.handle("g") == list(range(61, 86))


async def test_a_store_full_of_waiting_messages_is_alarmed(caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing handled is left to go, publishers are refused and the log says what to do; looks do not repeat
    the vain work."""
    scene = Scene(limit=10_000)
    await scene.engine.open()
    await scene.declare("g", "events.>")
    for _ in range(8):
        await scene.publish(size=1000)
    with pytest.raises(StoreFull):
        await scene.publish(size=1000)
    waiting = await scene.left()
    scene.janitor.start()
    await scene.pass_by(55)
    assert await scene.left() == waiting
    assert [record.levelno for record in caplog.records if "the store is full" in record.message] == [logging.WARNING]
    await scene.janitor.stop()


async def test_unclaimed_events_are_alarmed_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A subject that nobody wants is said once, one that a reader follows not at all."""
    await claims.declare(scene.engine, [], lease=30.0, readers={"push": ("events.seen",)})
    await scene.publish("events.typo")
    await scene.publish("events.seen")
    for _ in range(3):
        await scene.janitor.run_once()
    assert [record.message for record in caplog.records] == [
        "events on events.typo are unclaimed: no group has ever wanted them (tidings ls)"
    ]


async def test_removed_groups_do_not_come_back(scene: Scene) -> None:
    """A group that somebody declared again to the engine while it was being removed is removed by the next round."""
    await scene.declare("g", "events.>")
    ledger, _ = await claims.load(scene.engine)
    await claims.change(scene.engine, "g", removed=True)
    await scene.engine.declare(ledger.living())
    await scene.janitor.run_once()
    assert (await scene.engine.stats()).groups == {}


async def test_mending_leaves_leases_as_they_are(scene: Scene) -> None:
    """A janitor with another lease in its settings does not change those of groups that are there."""
    await scene.declare("g", "events.>")
    await scene.publish()
    janitor = Janitor(scene.engine, [], Settings(lease=500.0), clock=scene.clock)
    await janitor.run_once()
    [delivery] = await scene.engine.pull("g", 1, 0.0)
    assert delivery.deadline == scene.clock.monotonic() + 30.0


async def test_position_at_finds_the_moment(scene: Scene) -> None:
    """The position after which everything is as young as asked for, also in a log with holes."""
    for _ in range(20):
        await scene.publish()
        await scene.clock.advance(10)
    await scene.engine.purge("events.>", 5, 9)
    start = scene.clock.time() - 200
    for second in range(-5, 215, 5):
        after = await position_at(scene.engine, start + second)
        young = [entry.position for entry in await scene.engine.read([">"], 0, 100) if entry.time >= start + second]
        assert [position for position in await scene.left() if position > after] == young


async def test_the_inbox_is_pruned_by_every_process(scene: Scene) -> None:
    """Each worker's databases forget what was handled longer ago than the setting, turn or not."""
    asked: list[float] = []

    class Units:
        async def prune_inbox(self, older_than: float) -> int:
            asked.append(older_than)
            return 3

    other = Janitor(scene.engine, [Units()], Settings(), clock=scene.clock)  # type: ignore[list-item]
    await scene.janitor.run_once()
    other.start()
    await scene.pass_by(3700)
    assert asked == [14 * DAY]
    await other.stop()


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, 14.0), ({"retention": "10d"}, 20.0), ({"retention_inbox": "90d"}, 90.0), ({"retention": "never"}, None)],
)
def test_the_inbox_outlives_every_redelivery(given: dict[str, Any], kept: float | None) -> None:
    """What is remembered in the database is remembered for twice the retention and 14 days at least."""
    seconds = load(environment={}, **given).inbox_kept
    assert seconds == (None if kept is None else kept * DAY)


@pytest.mark.parametrize(
    "given", [{"retention_inbox": "13d"}, {"retention": "10d", "retention_inbox": "15d"}, {"retention": "0s"}]
)
def test_a_retention_that_would_do_harm_is_refused(given: dict[str, Any]) -> None:
    """An inbox that forgets too early, or no retention at all, keeps the process from starting."""
    with pytest.raises(ConfigError, match="retention"):
        load(environment={}, **given)


def test_never_keeps_everything() -> None:
    """`never` in the environment is no retention at all."""
    found = load(environment={"TIDINGS_RETENTION": "never", "TIDINGS_RETENTION_UNCLAIMED": "Never"})
    assert (found.retention, found.retention_unclaimed) == (None, None)


def test_claims_that_others_cover_are_swept_once() -> None:
    """Narrower claims that begin later disappear in the wider one; earlier ones stay."""
    groups = {
        "all": claims.Claimant((Claim("events.>", 10),)),
        "same": claims.Claimant((Claim("events.>", 30),)),
        "late": claims.Claimant((Claim("events.a", 20),)),
        "early": claims.Claimant((Claim("events.b", 3),), removed=True),
    }
    sweeps = claimed(Ledger(groups=groups), 100)
    assert sorted((sweep.filter, sweep.first) for sweep in sweeps) == [("events.>", 10), ("events.b", 3)]
    assert claimed(Ledger(groups=groups), 3) == []


SUBJECTS = ("events.a", "events.b", "events.c.d")
FILTERS = ("events.>", "events.a", "events.b", "events.c.*")


def test_the_book_stays_short() -> None:
    """Places are noted by filter and only rise; with very many filters one place stands for all subjects."""
    book = Book().noting([Sweep("events.a", 1, 9), Sweep("events.b", 1, 5)]).noting([Sweep("events.a", 1, 7)])
    assert (book.oldest(["events.a"]), book.oldest(["events.b"]), book.oldest(["events.c"])) == (9, 5, 1)
    crowded = book.noting([Sweep(f"events.typo{number}", 1, 8) for number in range(300)])
    assert (len(crowded.purged), crowded.oldest(["events.c"])) == (1, 9)


ACTS = ("publish", "publish", "publish", "declare", "handle", "handle", "remove", "days", "sweep", "sweep")


@pytest.mark.parametrize("seed", range(30))
async def test_nothing_goes_that_must_stay(seed: int) -> None:
    """Whatever is published, declared, handled and removed, and however time passes: an entry goes when every group
    that claims it has handled it and 7 days are over, or nobody ever claimed it and 30 are, and never otherwise."""
    chance = random.Random(seed)
    scene = Scene()
    await scene.engine.open()
    born: dict[int, tuple[str, float]] = {}
    for _ in range(150):
        act, filter = chance.choice(ACTS), chance.choice(FILTERS)
        names = list((await scene.engine.stats()).groups)
        if act == "publish":
            subject = chance.choice(SUBJECTS)
            born[await scene.publish(subject)] = (subject, scene.clock.time())
        elif act == "days":
            await scene.clock.advance(chance.randint(1, 12) * DAY)
        elif act == "declare" and chance.random() < 0.3:
            await scene.declare(f"g-{FILTERS.index(filter)}", filter)
        elif act == "remove" and names and chance.random() < 0.2:
            await claims.change(scene.engine, chance.choice(names), removed=True)
        elif act == "handle" and names:
            await scene.handle(chance.choice(names), chance.randint(1, 5))
        elif act == "sweep":
            await scene.janitor.run_once()
            await _check(scene, born)
    await scene.engine.close()


async def _check(scene: Scene, born: dict[int, tuple[str, float]]) -> None:
    ledger, _ = await claims.load(scene.engine)
    now, left = scene.clock.time(), set(await scene.left())
    open = {
        position
        for position in born
        if any(position in scene.store.group(name) for name in (await scene.engine.stats()).groups)
    }
    for position, (subject, time) in list(born.items()):
        kept = 7 * DAY if ledger.claimed(subject, position) else 30 * DAY
        stays = position in open or now - time <= kept
        assert (position in left) == stays, (position, subject, (now - time) / DAY, position in open)
        if not stays:
            del born[position]


async def test_a_test_bus_lives_by_its_clock() -> None:
    """In a test time passes by hand, and handled events go as they would."""
    bus = tidings.Bus("todo", settings=Settings(retention=3600.0))

    @bus.on("events.a", group="save")
    async def save(message: tidings.Message[Any]) -> None: ...

    async with TestBus(bus) as t:
        await bus.publish("events.a", {})
        await bus.publish("events.b", {})
        await t.settle()
        for _ in range(4):
            await t.clock.advance(1200)
            await t.settle()
        assert [message.subject for message in await t.published()] == ["events.b"]
        assert await oldest_whole(bus.engine, ["events.a"]) == 3
        assert await oldest_whole(bus.engine, ["events.b"]) == 1
