"""Recurring work: a function that runs once per due time, however many processes there are.

A scheduled function is a handler with a group of its own, and so has retries, dead letters and transactions like any
other. What it handles are *ticks*: durable events on `_s.{namespace}.{group}`, beside the application's own subjects,
so that a group on `events.>` never sees one. Each worker process that runs the group also keeps its schedule:

    the record says what is due ──> wait ──> publish the tick ──> move the record on
                                          (id: group@due time)   (compare-and-set)

All of them do so at the same moment, and a crash between the last two steps repeats the first of them; but the id is
the due time's, so that the engine stores the tick once (within its dedupe window; a transaction's inbox knows it for
ever). The record outlives the processes: what was due while none ran is found by the next one that starts.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zoneinfo
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

import msgspec
from cronsim import CronSim, CronSimError

from . import claims
from .clock import Clock
from .codec import codec_for
from .engine import Engine, Outgoing
from .errors import Closed, ConfigError, Conflict, TidingsError
from .handlers import Handler, HandlerOptions
from .logs import Lasting
from .message import compose
from .settings import duration
from .subjects import check_group

log = logging.getLogger("tidings.schedule")

CatchUp = Literal["latest", "all", "none"]

_LOOK_AGAIN: Final = 30.0
"""Seconds after which the record is read again although nothing is due: somebody may have changed it."""
_LATE: Final = 60.0
"""Seconds by which a due time may be late before `catch_up="none"` lets it go."""
_TOGETHER: Final = 100
"""Due times that are caught up in one step."""
_SHORTEST: Final = 0.1
_GRAIN: Final = 1e-6
"""What a float cannot tell apart in seconds since 1970."""


class Tick(msgspec.Struct, frozen=True):
    """What a scheduled function may take as a parameter: what it runs for."""

    schedule: str
    due: datetime
    """The due time, in UTC; the function may run later."""


class Timing(msgspec.Struct, frozen=True):
    """When something is due: every so many seconds, or by a cron expression in a time zone."""

    every: float = 0.0
    cron: str = ""
    zone: str = "UTC"

    @classmethod
    def interval(cls, text: str | float) -> Timing:
        """From `5m` or a number of seconds; raises `ConfigError`."""
        seconds = round(duration(text), 3)
        if seconds < _SHORTEST:
            raise ConfigError(f"every {text}: at least {_SHORTEST:g} s, because each due time is stored")
        return cls(every=seconds)

    @classmethod
    def crontab(cls, expression: str, zone: str) -> Timing:
        """From five fields (minute, hour, day of month, month, day of week); raises `ConfigError`."""
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigError(
                f"there is no time zone {zone!r} here: write a name such as 'Europe/Berlin' (where the system has no "
                "time zones, install the package tzdata)"
            ) from None
        timing = cls(cron=" ".join(expression.split()), zone=zone)
        try:
            if len(timing.cron.split()) != 5:
                raise CronSimError("a cron expression has five fields; for less than a minute use every()")
            timing.after(0.0)
        except CronSimError as error:
            raise ConfigError(f"cron {expression!r}: {error}. Write for example '0 9 * * mon-fri'") from None
        return timing

    def __str__(self) -> str:
        return f"every {self.every:g} s" if self.every else f"{self.cron} ({self.zone})"

    def after(self, moment: float, due: float | None = None) -> float:
        """The first due time after `moment`. Intervals count from the due time `due`, or else from the moment."""
        if self.every:
            start = moment if due is None else due
            steps = math.floor((moment - start + _GRAIN) / self.every) + 1
            return round(start + steps * self.every, 3)
        for time in CronSim(self.cron, self._local(moment)):
            # In the hour that a clock is put back for, the library counts from before it.
            if (found := time.timestamp()) > moment:
                return found
        raise CronSimError("it is never due")

    def latest(self, first: float, now: float) -> float:
        """The last due time that is not after `now`, `first` being one of them."""
        if self.every:
            return round(first + math.floor((now - first + _GRAIN) / self.every) * self.every, 3)
        found = next(CronSim(self.cron, self._local(math.floor(now) + 1), reverse=True)).timestamp()
        return found if first <= found <= now else first

    def _local(self, moment: float) -> datetime:
        return datetime.fromtimestamp(moment, zoneinfo.ZoneInfo(self.zone))


class Progress(msgspec.Struct, frozen=True):
    """The record of a schedule: what every process that keeps it goes by."""

    timing: Timing
    due: float | None
    """The next due time, seconds since 1970; None once it was removed."""
    last: float | None = None
    """The due time whose tick was published last."""


class Schedule:
    """A function, when it is due, and what becomes of due times that were missed."""

    def __init__(
        self, function: Callable[..., Any], timing: Timing, catch_up: CatchUp, options: HandlerOptions
    ) -> None:
        if catch_up not in get_args(CatchUp):
            raise ConfigError(f"catch_up={catch_up!r}: write one of {', '.join(get_args(CatchUp))}")
        check_group(options.group)
        self.function = function
        self.timing = timing
        self.catch_up = catch_up
        self.options = options

    @property
    def name(self) -> str:
        """The group's name is the schedule's."""
        return self.options.group

    def handler(self, namespace: str) -> Handler:
        """What handles the ticks."""
        return Handler(self.function, [subject_of(namespace, self.name)], self.options)

    def to_run(self, progress: Progress, now: float) -> tuple[list[float], float]:
        """The due times that are to be published now, and the one to wait for next."""
        timing, first = progress.timing, progress.due
        assert first is not None
        if self.catch_up == "all":
            times = [first]
            while (following := timing.after(times[-1], first)) <= now and len(times) < _TOGETHER:
                times.append(following)
            return times, following
        last = timing.latest(first, now)
        if last > first:
            log.warning("schedule %s: due times were missed from %s on", self.name, _iso(first))
        let_go = self.catch_up == "none" and now - last > _LATE
        return [] if let_go else [last], timing.after(last, first)


class Ticker:
    """Keeps the schedules of one worker process."""

    def __init__(
        self, engine: Engine, schedules: Sequence[Schedule], *, namespace: str, source: str, clock: Clock
    ) -> None:
        self.engine = engine
        self.clock = clock
        self._schedules = list(schedules)
        self._namespace = namespace
        self._source = source
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Write the records of schedules that are new or changed, and begin; runs in tasks until `stop`."""
        for schedule in self._schedules:
            await begin(self.engine, schedule, self.clock.time())
        self._tasks = [
            asyncio.create_task(self._keep(schedule), name=f"tidings-schedule-{schedule.name}")
            for schedule in self._schedules
        ]

    async def stop(self) -> None:
        """Publish no more ticks; idempotent. A tick that is cut off here is repeated by the next process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _keep(self, schedule: Schedule) -> None:
        pause, trouble = 0.5, Lasting(log, self.clock)
        while True:
            try:
                rest = await self._tick(schedule)
                pause = 0.5
                trouble.over("schedule %s goes on", schedule.name)
            except Closed:
                return
            except TidingsError as error:
                trouble.met("schedule %s waits for the engine: %s", schedule.name, error)
                rest = pause = min(2 * pause, _LOOK_AGAIN)
            except Exception:
                log.critical("schedule %s failed, by an error of ours; it goes on trying", schedule.name, exc_info=True)
                rest = _LOOK_AGAIN
            await self.clock.sleep(rest)

    async def _tick(self, schedule: Schedule) -> float:
        """Publish what is due, if anything is; returns the seconds until the next look."""
        progress, revision = await load(self.engine, schedule.name)
        if progress is None or progress.due is None:
            return _LOOK_AGAIN  # removed; a process that starts with it in its code begins it anew
        now = self.clock.time()
        if progress.due > now + _GRAIN:
            return self._until(progress.due)
        ledger, _ = await claims.load(self.engine)
        claimant = ledger.groups.get(schedule.name)
        if claimant is None or claimant.removed or claimant.paused:
            return _LOOK_AGAIN
        times, following = schedule.to_run(progress, now)
        if times:
            await self.engine.publish([self._message(schedule, time) for time in times])
        moved = Progress(progress.timing, following, times[-1] if times else progress.last)
        try:
            await _write(self.engine, schedule.name, moved, revision)
        except Conflict:
            return 0.0  # another process was faster
        return self._until(following)

    def _until(self, due: float) -> float:
        return min(max(0.0, due - self.clock.time()), _LOOK_AGAIN)

    def _message(self, schedule: Schedule, due: float) -> Outgoing:
        tick = Tick(schedule.name, datetime.fromtimestamp(due, UTC))
        return compose(
            subject_of(self._namespace, schedule.name),
            codec_for(Tick).encode(tick),
            id=f"{schedule.name}@{_iso(due)}",
            ce_type="tidings.tick",
            source=self._source,
            now=self.clock.time(),
        )


def subject_of(namespace: str, name: str) -> str:
    """The subject of a schedule's ticks; with `>` as name the root of them all."""
    return f"_s.{namespace}.{name}"


def is_schedule(claimant: claims.Claimant) -> bool:
    """Whether a group of the ledger is that of a schedule."""
    return any(claim.filter.startswith("_s.") for claim in claimant.claims)


async def load(engine: Engine, name: str) -> tuple[Progress | None, int]:
    """The record of a schedule and its revision."""
    record = await engine.recall(_key(name))
    if record is None:
        return None, 0
    return msgspec.json.decode(record.value, type=Progress), record.revision


async def begin(engine: Engine, schedule: Schedule, now: float) -> None:
    """Write the record if there is none, or another timing than ours: who started last decides.

    A new interval first ends one interval from now. With the timing unchanged the due time stays as it stands.
    """
    while True:
        progress, revision = await load(engine, schedule.name)
        if progress is not None and progress.due is not None and progress.timing == schedule.timing:
            return
        last = None if progress is None else progress.last
        try:
            await _write(engine, schedule.name, Progress(schedule.timing, schedule.timing.after(now), last), revision)
            return
        except Conflict:
            continue


async def end(engine: Engine, name: str) -> None:
    """Nothing of this schedule falls due any more, in any process."""
    while True:
        progress, revision = await load(engine, name)
        if progress is None or progress.due is None:
            return
        try:
            await _write(engine, name, msgspec.structs.replace(progress, due=None), revision)
            return
        except Conflict:
            continue


async def _write(engine: Engine, name: str, progress: Progress, revision: int) -> None:
    await engine.register(_key(name), msgspec.json.encode(progress), revision)


def _key(name: str) -> str:
    return f"schedule.{name}"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
