"""Schedules: when something is due, and that it runs once per due time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import Result

import tidings
from shell import MemoryShell
from tidings import claims, schedule
from tidings.clock import ManualClock, SystemClock
from tidings.engine import Entry, Outgoing, Stored
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.errors import Closed, ConfigError, Conflict, EngineUnavailable
from tidings.handlers import HandlerOptions
from tidings.schedule import CatchUp, Progress, Schedule, Ticker, Timing
from tidings.testing import TestBus

BERLIN = ZoneInfo("Europe/Berlin")


class CleanUp(tidings.Event, subject="events.cleanup"):
    pass


def berlin(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def times(cron: str, start: str, count: int, zone: str = "Europe/Berlin") -> list[str]:
    """The next due times, with their offsets."""
    timing, moment, found = Timing.crontab(cron, zone), berlin(start), []
    for _ in range(count):
        moment = timing.after(moment)
        found.append(datetime.fromtimestamp(moment, ZoneInfo(zone)).strftime("%d %H:%M %z"))
    return found


def test_cron_keeps_to_the_clock_of_its_zone() -> None:
    """Nine o'clock on weekdays is nine o'clock there, in summer and in winter."""
    assert times("0 9 * * mon-fri", "2026-03-27T08:00", 2) == ["27 09:00 +0100", "30 09:00 +0200"]
    assert times("0 9 * * mon-fri", "2026-03-27T08:00", 1, "UTC") == ["27 09:00 +0000"]


def test_a_skipped_time_runs_at_the_next_moment() -> None:
    """Half past two does not exist on the night in spring: it runs at three, once, and the next night as ever."""
    assert times("30 2 * * *", "2026-03-28T12:00", 2) == ["29 03:00 +0200", "30 02:30 +0200"]


def test_a_doubled_time_runs_once() -> None:
    """Half past two comes twice on the night in autumn: it runs the first time, whenever one begins to count."""
    assert times("30 2 * * *", "2026-10-24T12:00", 2) == ["25 02:30 +0200", "26 02:30 +0100"]
    again = berlin("2026-10-25T02:30") + 40 * 60  # 02:10 for the second time
    after = Timing.crontab("30 2 * * *", "Europe/Berlin").after(again)
    assert datetime.fromtimestamp(after, BERLIN).strftime("%d %H:%M %z") == "26 02:30 +0100"


def test_stars_go_on_over_a_clock_change() -> None:
    """Every half hour means that half an hour lies between two of them, all night."""
    timing, moment = Timing.crontab("*/30 * * * *", "Europe/Berlin"), berlin("2026-10-25T01:00")
    for _ in range(8):
        moment, before = timing.after(moment), moment
        assert moment - before == 1800


@pytest.mark.parametrize("cron", ["30 2 * * *", "0 9 * * mon-fri", "*/7 * * * *", "0 0 29 2 *", "15 3 1 * *"])
@pytest.mark.parametrize("start", ["2026-03-28T23:59", "2026-10-25T00:10", "2027-06-01T09:00"])
def test_the_latest_is_the_last_of_those_after_one_another(cron: str, start: str) -> None:
    """Looking back from any moment finds the due time that counting forward has reached."""
    timing = Timing.crontab(cron, "Europe/Berlin")
    first = reached = timing.after(berlin(start))
    for _ in range(40):
        following = timing.after(reached)
        for now in (reached, reached + 0.5, following - 0.5):
            assert timing.latest(first, now) == reached
        reached = following


def test_intervals_do_not_drift() -> None:
    """A thousand intervals of 200 ms are 200 s, however late each was noticed."""
    timing, due = Timing.interval("200ms"), 1_700_000_000.1
    for number in range(1, 1001):
        due = timing.after(due + 0.13, due)
        assert due == round(1_700_000_000.1 + number * 0.2, 3)
    assert timing.latest(due, due + 1.0) == round(due + 1.0, 3)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda bus: bus.every("soon", group="g"), "not a duration"),
        (lambda bus: bus.every("50ms", group="g"), "at least 0.1 s"),
        (lambda bus: bus.cron("0 9 * *", group="g"), "five fields"),
        (lambda bus: bus.cron("0 0 9 * * *", group="g"), "every()"),
        (lambda bus: bus.cron("61 9 * * *", group="g"), "Bad minute"),
        (lambda bus: bus.cron("0 0 30 2 *", group="g"), "day-of-month"),
        (lambda bus: bus.cron("0 9 * * *", tz="Europe/Atlantis", group="g"), "Europe/Berlin"),
        (lambda bus: bus.every("5m", group="no good"), "group name"),
        (lambda bus: bus.every("5m", group="g", catch_up="some"), "latest, all, none"),
    ],
)
def test_mistakes_are_told_at_the_decorator(make: Callable[[tidings.Bus], Any], hint: str) -> None:
    """What cannot work raises where it is written, and says what to write."""
    with pytest.raises(ConfigError, match=hint.replace("(", r"\(").replace(")", r"\)")):
        make(tidings.Bus("app"))(lambda: None)


def test_a_group_has_one_handler_or_one_schedule() -> None:
    """A schedule's name is a group's: it cannot be taken twice."""
    bus = tidings.Bus("app")
    bus.every("5m", group="sweep")(lambda: None)
    with pytest.raises(ConfigError, match="already has the handler"):
        bus.on("events.a", group="sweep")(lambda: None)
    with pytest.raises(ConfigError, match="already has the handler"):
        bus.cron("0 0 * * *", group="sweep")(lambda: None)


async def test_a_scheduled_function_runs_when_it_is_due() -> None:
    """It runs once per interval, is told what it runs for, and what it returns is published."""
    bus, due = tidings.Bus("app"), []

    @bus.every("5m", group="sweep")
    async def sweep(tick: tidings.Tick) -> CleanUp:
        due.append(tick.due.timestamp())
        return CleanUp()

    async with TestBus(bus) as t:
        start = t.clock.time()
        await t.clock.advance(299)
        await t.settle()
        assert due == []
        await t.clock.advance(1)
        await t.settle()
        await t.clock.advance(3000)
        await t.settle()
        assert due == [start + 300 * number for number in range(1, 12)]
        published = await t.published("events.cleanup")
        assert len(published) == 11
        assert published[0].causation_id == f"sweep@{_iso(start + 300)}"


async def test_a_plain_function_runs_by_cron() -> None:
    """A `def` without parameters is enough; it runs at the times of the expression."""
    bus = tidings.Bus("app")
    ran: list[None] = []
    bus.cron("0 * * * *", tz="Europe/Berlin", group="hourly")(lambda: ran.append(None))
    async with TestBus(bus) as t:
        rest = 3600 - t.clock.time() % 3600
        await t.clock.advance(rest - 1)
        await t.settle()
        assert len(ran) == 0
        await t.clock.advance(1)
        await t.settle()
        assert len(ran) == 1


async def test_handlers_of_everything_see_no_ticks() -> None:
    """Ticks lie beside the application's subjects: an audit of `events.>` stays what it is."""
    bus, seen = tidings.Bus("app"), []
    bus.every("1m", group="sweep")(lambda: None)

    @bus.on("events.>", group="audit")
    async def audit(message: tidings.Message) -> None:
        seen.append(message.subject)

    async with TestBus(bus) as t:
        await bus.publish("events.a", {})
        await t.clock.advance(120)
        await t.settle()
        assert seen == ["events.a"]
        assert len(await t.published("_s.>")) == 2


async def test_a_failed_run_is_retried_and_ends_as_a_dead_letter() -> None:
    """A scheduled function is a handler like any other: retries, then a dead letter of its group."""
    bus = tidings.Bus("app")
    tries = []

    @bus.every("1h", group="sweep", retry=tidings.RetryPolicy(attempts=2, first=1.0))
    async def sweep() -> None:
        tries.append(1)
        raise ValueError("not today")

    async with TestBus(bus) as t:
        await t.clock.advance(3600)
        await t.settle()
        await t.clock.advance(10)
        await t.settle()
        [letter] = await t.dead_letters("sweep")
        assert (len(tries), letter.failure.message) == (2, "not today")


async def test_a_worker_keeps_the_schedules_of_its_groups_only() -> None:
    """Nothing falls due for a group that no worker runs: nothing would pile up."""
    bus, ran = tidings.Bus("app"), []
    bus.every("1m", group="here")(lambda: ran.append("here"))
    bus.every("1m", group="elsewhere")(lambda: ran.append("elsewhere"))
    async with TestBus(bus, groups=["here"]) as t:
        await t.clock.advance(60)
        await t.settle()
        assert ran == ["here"]
        assert [message.subject for message in await t.published("_s.>")] == ["_s.tidings.here"]


# Several processes, one record


class Cluster:
    """Processes that keep one schedule of 10 s, on one store in memory."""

    def __init__(self, catch_up: CatchUp = "latest", timing: Timing | None = None) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.schedule = Schedule(_nothing, timing or Timing.interval(10), catch_up, HandlerOptions("sweep"))
        self.start = self.clock.time()
        self.tickers: list[Ticker] = []

    async def engine(self, kind: type[MemoryEngine] = MemoryEngine) -> MemoryEngine:
        engine = kind(self.store)
        await engine.open()
        wish = claims.Wish("sweep", (schedule.subject_of("tidings", "sweep"),))
        await claims.declare(engine, [wish], lease=30.0)
        return engine

    async def join(self, engine: MemoryEngine | None = None, timing: Timing | None = None) -> Ticker:
        kept = self.schedule
        if timing is not None:
            kept = Schedule(_nothing, timing, kept.catch_up, kept.options)
        connection = engine or await self.engine()
        ticker = Ticker(connection, [kept], namespace="tidings", source="app", clock=self.clock)
        await ticker.start()
        self.tickers.append(ticker)
        await self.clock.advance(0)
        return ticker

    async def due(self) -> list[float]:
        """What was published so far, in seconds from the start."""
        engine = await self.engine()
        entries = await engine.read(["_s.>"], 0, 10_000)
        return [round(_due(entry) - self.start, 3) for entry in entries]

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        for ticker in self.tickers:
            await ticker.stop()


async def _nothing() -> None: ...


def _due(entry: Entry) -> float:
    return datetime.fromisoformat(json.loads(entry.body)["due"]).timestamp()


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Slow(MemoryEngine):
    """Is so far away that all others have read the record before one of them has published."""

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        for _ in range(100):
            await asyncio.sleep(0)
        return await super().publish(messages)


async def test_many_processes_publish_each_due_time_once() -> None:
    """Five processes find the same due times; each is stored once, at its time."""
    async with Cluster() as cluster:
        for _ in range(5):
            await cluster.join(await cluster.engine(Slow))
        for _ in range(10):
            await cluster.clock.advance(10)
            for _ in range(300):
                await asyncio.sleep(0)
        assert await cluster.due() == [10.0 * number for number in range(1, 11)]
        entries = await (await cluster.engine()).read(["_s.>"], 0, 100)
        assert [entry.time for entry in entries] == [_due(entry) for entry in entries]


class Dying(MemoryEngine):
    """Its process dies, once it is `ill`, after the next thing it writes."""

    ill = False

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        stored = await super().publish(messages)
        self._die()
        return stored

    async def register(self, key: str, value: bytes, revision: int) -> int:
        written = await super().register(key, value, revision)
        self._die()
        return written

    def _die(self) -> None:
        if self.ill:
            self.abandon()


async def test_a_crash_between_the_steps_repeats_the_same_tick() -> None:
    """The next process publishes the due time again, under its id: it is stored once, and nothing is skipped."""
    async with Cluster() as cluster:
        dying = await cluster.engine(Dying)
        assert isinstance(dying, Dying)
        await cluster.join(dying)
        dying.ill = True
        await cluster.clock.advance(10)
        with pytest.raises(Closed):
            await dying.stats()
        await cluster.join()
        await cluster.clock.advance(20)
        assert await cluster.due() == [10.0, 20.0, 30.0]


class Away(MemoryEngine):
    """Cannot be reached for a while."""

    away = True

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        if self.away:
            raise EngineUnavailable("nobody answers")
        return await super().publish(messages)


async def test_an_engine_that_is_away_loses_no_due_time() -> None:
    """What was due while the engine could not be reached is published when it is back."""
    async with Cluster(catch_up="all") as cluster:
        engine = await cluster.engine(Away)
        assert isinstance(engine, Away)
        await cluster.join(engine)
        await cluster.clock.advance(25)
        assert await cluster.due() == []
        engine.away = False
        await cluster.clock.advance(30)
        assert await cluster.due() == [10.0, 20.0, 30.0, 40.0, 50.0]


@pytest.mark.parametrize(
    ("catch_up", "made_up"),
    [("latest", [1000.0]), ("all", [10.0 * number for number in range(1, 101)]), ("none", [])],
)
async def test_what_was_missed_is_caught_up_as_asked(catch_up: CatchUp, made_up: list[float]) -> None:
    """Due times that passed while no process ran: the last one, all of them, or none."""
    async with Cluster(catch_up, Timing.interval(10) if catch_up != "none" else Timing.interval(900)) as cluster:
        first = await cluster.join()
        await first.stop()
        await cluster.clock.advance(1005)
        await cluster.join()
        assert await cluster.due() == made_up


async def test_restarts_do_not_begin_the_interval_anew() -> None:
    """A process that restarts more often than the interval is long still runs it on time."""
    async with Cluster() as cluster:
        for _ in range(10):
            ticker = await cluster.join()
            await cluster.clock.advance(3)
            await ticker.stop()
        assert await cluster.due() == [10.0, 20.0, 30.0]


async def test_a_changed_timing_replaces_the_old_one() -> None:
    """Who started last decides; processes with the older code go by the record, and none runs both timings."""
    async with Cluster() as cluster:
        await cluster.join()
        await cluster.clock.advance(10)
        await cluster.join(timing=Timing.interval(25))
        await cluster.clock.advance(60)
        assert await cluster.due() == [10.0, 35.0, 60.0]


async def test_a_paused_schedule_runs_once_when_it_goes_on() -> None:
    """While its group is paused nothing piles up; afterwards the usual catching up applies."""
    async with Cluster() as cluster:
        engine = await cluster.engine()
        await cluster.join()
        await claims.change(engine, "sweep", paused=True)
        await cluster.clock.advance(95)
        assert await cluster.due() == []
        await claims.change(engine, "sweep", paused=False)
        await cluster.clock.advance(30)
        assert (await cluster.due())[0] >= 90.0
        assert len(await cluster.due()) <= 4


async def test_a_removed_schedule_ends_in_running_processes() -> None:
    """After its removal nothing falls due; a process that starts with it later begins a new interval."""
    async with Cluster() as cluster:
        engine = await cluster.engine()
        await cluster.join()
        await cluster.clock.advance(10)
        await schedule.end(engine, "sweep")
        await claims.change(engine, "sweep", removed=True)
        await cluster.clock.advance(1000)
        assert await cluster.due() == [10.0]
        await cluster.join()
        await cluster.clock.advance(15)
        assert await cluster.due() == [10.0, 1020.0]


async def test_the_record_is_written_by_one() -> None:
    """Of two that begin a schedule at the same time one writes, and the other takes what is there."""
    async with Cluster() as cluster:
        engines = [await cluster.engine() for _ in range(4)]
        await asyncio.gather(*(schedule.begin(engine, cluster.schedule, cluster.start) for engine in engines))
        progress, revision = await schedule.load(engines[0], "sweep")
        assert (progress, revision) == (Progress(Timing.interval(10), cluster.start + 10), 1)
        with pytest.raises(Conflict):
            await engines[0].register("schedule.sweep", b"", 0)


# Single messages


async def test_a_delayed_message_is_cancelled_by_its_receipt() -> None:
    """Before its time it can be taken back; afterwards it cannot."""
    bus, seen = tidings.Bus("app"), []

    @bus.on("events.>", group="all")
    async def take(message: tidings.Message) -> None:
        seen.append(message.data)

    async with TestBus(bus) as t:
        first = await bus.publish("events.a", 1, delay=60)
        second = await bus.publish("events.a", 2, at=datetime.fromtimestamp(t.clock.time(), UTC) + timedelta(minutes=1))
        assert await bus.cancel(first)
        await t.clock.advance(60)
        await t.settle()
        assert seen == [2]
        assert not await bus.cancel(first)
        assert not await bus.cancel(second)


# The command line


class Shell(MemoryShell):
    command = ("schedules",)

    def declare(self, name: str, timing: Timing, now: float) -> None:
        async def act(engine: MemoryEngine) -> None:
            wish = claims.Wish(name, (schedule.subject_of("tidings", name),))
            await claims.declare(engine, [wish, claims.Wish("save", ("events.a",))], lease=30.0)
            await schedule.begin(engine, Schedule(_nothing, timing, "latest", HandlerOptions(name)), now)

        self.play(act)


@pytest.fixture
def shell() -> Shell:
    return Shell(SystemClock())


def test_schedules_ls_says_what_runs_when(shell: Shell) -> None:
    """Each schedule with its timing and its next time; one that nobody keeps is told apart; groups are not listed."""
    now = datetime.now(UTC).timestamp()
    shell.declare("sweep", Timing.interval("1h"), now)
    shell.declare("report", Timing.crontab("0 9 * * mon-fri", "Europe/Berlin"), now - 30 * 86400)
    found = {one["schedule"]: one for one in shell.json("ls")["schedules"]}
    assert set(found) == {"sweep", "report"}
    assert (found["sweep"]["every"], found["sweep"]["state"]) == (3600.0, "")
    assert datetime.fromisoformat(found["sweep"]["next"]).timestamp() == pytest.approx(now + 3600, abs=0.002)
    assert (found["report"]["cron"], found["report"]["zone"]) == ("0 9 * * mon-fri", "Europe/Berlin")
    assert "no worker keeps it" in found["report"]["state"]
    text = shell("ls").stdout
    assert "every 3600 s" in text
    assert "0 9 * * mon-fri (Europe/Berlin)" in text


def test_schedules_ls_and_cancel_know_delayed_messages(shell: Shell) -> None:
    """Single messages that wait are listed with their time, and cancelled by subject and id."""
    due = round(datetime.now(UTC).timestamp() + 3600, 3)

    async def publish(engine: MemoryEngine) -> None:
        await engine.publish([Outgoing("events.a", b'{"x":1}', {}, "m-1", due)])

    async def act(engine: MemoryEngine) -> list[Result]:
        await publish(engine)  # its timer lives in this event loop: the commands run beside it
        words = (("ls", "--json"), ("cancel", "events.a", "m-1"), ("cancel", "events.a", "m-1"))
        return [await asyncio.to_thread(shell, *each) for each in words]

    listed, cancelled, again = shell.play(act)
    assert json.loads(listed.stdout)["delayed"] == [
        {"subject": "events.a", "id": "m-1", "due": _iso(due), "body": {"x": 1}}
    ]
    assert cancelled.exit_code == 0, cancelled.stderr
    assert again.exit_code == 5
    assert "no message 'm-1' waits" in again.stderr


def test_schedules_rm_removes_for_good(shell: Shell) -> None:
    """Refused while a run waits, done when nothing does; afterwards it is not listed, and unknown names are told."""
    shell.declare("sweep", Timing.interval("1h"), datetime.now(UTC).timestamp())
    shell.play(lambda engine: engine.publish([Outgoing("_s.tidings.sweep", b"{}", {}, "t-1")]))
    refused = shell("rm", "sweep", "--yes")
    assert refused.exit_code == 1
    assert "1 run(s) that wait" in refused.stderr
    assert "would be refused" in shell("rm", "sweep", "--dry-run").stdout
    assert shell.json("rm", "sweep", "--yes", "--discard") == {"schedule": "sweep", "removed": True}
    assert shell.json("ls")["schedules"] == []
    progress, _ = shell.play(lambda engine: schedule.load(engine, "sweep"))
    assert progress is not None
    assert progress.due is None
    missing = shell("rm", "sweep", "--yes")
    assert missing.exit_code == 5
    assert "no schedule 'sweep'" in missing.stderr
