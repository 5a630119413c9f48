"""What may leave the log, and the janitor that sees to it.

    stored ──> handled by every group that claims it ──> older than `retention` ──> gone
           └─> claimed by no group ──> older than `retention_unclaimed` ──> gone

The ledger says which entries some group has ever claimed: from a claim's `since` on, on its filter. The engine keeps
what a group has still to handle, whatever is asked of it. Together they leave exactly two kinds of entries that go with
time, and under pressure of space the first kind goes earlier, the oldest first.

Before anything goes it is written down up to where: so that push can tell a browser that it comes too late.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from . import claims
from .clock import Clock
from .engine import Engine
from .errors import Closed, Conflict, TidingsError
from .logs import Lasting
from .settings import Settings
from .subjects import overlap
from .unit import Units

log = logging.getLogger("tidings.retention")

_KEY: Final = "retention"
_LOOK: Final = 10.0
"""Seconds between two looks at how full the store is."""
_SWEEP: Final = 60.0
_PRUNE: Final = 3600.0
_PRESSED: Final = 0.8
"""Part of the store's limit at which handled entries begin to go before their time: publishers are refused at 0.9."""
_RELIEVED: Final = 0.7
_STEPS: Final = 8
_FILTERS: Final = 200
"""Filters that the book keeps apart; with more of them it speaks of all subjects at once, which is true as well."""


class Book(msgspec.Struct, frozen=True):
    """The record that all processes share."""

    holder: str = ""
    """Whose turn it is to sweep."""
    until: float = 0.0
    """Seconds since 1970 after which somebody else may take over."""
    purged: dict[str, int] = {}
    """For each filter the position below which entries may be gone."""

    def oldest(self, filters: Sequence[str]) -> int:
        """The first position from which on everything on the filters is still stored."""
        return max((place for gone, place in self.purged.items() if any(overlap(gone, f) for f in filters)), default=1)

    def noting(self, sweeps: Sequence[Sweep]) -> Book:
        """The book with what is about to go."""
        purged = dict(self.purged)
        for sweep in sweeps:
            purged[sweep.filter] = max(sweep.below, purged.get(sweep.filter, 1))
        if len(purged) > _FILTERS:
            purged = {">": max(purged.values())}
        return msgspec.structs.replace(self, purged=purged)


class Sweep(msgspec.Struct, frozen=True):
    """Entries that may go as far as the engine lets them."""

    filter: str
    first: int
    below: int


async def oldest_whole(engine: Engine, filters: Sequence[str]) -> int:
    """The first position from which on everything that was ever stored on the filters still is."""
    book, _ = await _load(engine)
    return book.oldest(filters)


async def position_at(engine: Engine, when: float) -> int:
    """The position after which everything was stored at or after that time: times rise with positions."""
    stats = await engine.stats()
    low, high = stats.first - 1, stats.last
    while low < high:
        middle = (low + high) // 2
        page = await engine.read([">"], middle, 1)
        if page and page[0].time < when:
            low = page[0].position
        else:
            high = middle
    return low


def claimed(ledger: claims.Ledger, below: int) -> list[Sweep]:
    """What some group has ever claimed, up to a position."""
    return [Sweep(claim.filter, claim.since, below) for claim in ledger.claims if claim.since < below]


class Janitor:
    """Sweeps about once a minute, in whichever worker process has the turn. Made and stopped with the worker.

    The turn saves work and keeps the book; two that sweep at the same time harm nothing.
    """

    def __init__(self, engine: Engine, units: Sequence[Units], settings: Settings, *, clock: Clock) -> None:
        self._engine = engine
        self._units = units
        self.settings = settings
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._swept = -_SWEEP
        self._pruned = clock.monotonic()
        self._stuck = False
        self._alarmed: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._trouble = Lasting(log, clock)

    def start(self) -> None:
        """Begin; returns at once. Runs in a task of this event loop until `stop`."""
        self._task = asyncio.create_task(self._keep(), name="tidings-janitor")

    async def stop(self) -> None:
        """Sweep no more; idempotent. What is left is the next one's."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await self._clock.sleep(_LOOK)
            try:
                await self._look()
                self._trouble.over("the log is swept again")
            except Closed:
                return
            except TidingsError as error:
                self._trouble.met("old events are not swept out of the log at the moment: %s", error)
            except Exception:
                log.critical("nothing was swept, by an error of ours; the next time tries", exc_info=True)

    async def _look(self) -> None:
        now = self._clock.monotonic()
        if now - self._swept >= _SWEEP or (not self._stuck and await self._pressed()):
            self._swept = now
            await self.run_once()
        if now - self._pruned >= _PRUNE:
            self._pruned = now
            await self.prune()

    async def _pressed(self) -> bool:
        return (await self._engine.space()).share >= _PRESSED

    async def run_once(self, now: float | None = None) -> int | None:
        """Sweep as of the time `now`; returns how many entries went, or None when it is another process's turn."""
        if not await self._turn():
            return None
        ledger = await claims.mend(self._engine)
        when = self._clock.time() if now is None else now
        orphans = await claims.orphans(self._engine, ledger)
        self._alarm(ledger, orphans)
        removed = await self._sweep([*await self._handled(ledger, when), *await self._expired(orphans, when)])
        if await self._pressed():
            freed = await self._relieve(ledger)
            self._stuck, removed = not freed, removed + freed
        else:
            self._stuck = False
        if removed:
            log.info("%d event(s) were swept out of the log", removed)
        return removed

    async def prune(self) -> int:
        """Forget in the databases what was handled long ago; returns how many messages."""
        if (kept := self.settings.inbox_kept) is None:
            return 0
        return sum([await units.prune_inbox(kept) for units in self._units])

    async def _handled(self, ledger: claims.Ledger, now: float) -> list[Sweep]:
        if (kept := self.settings.retention) is None:
            return []
        return claimed(ledger, await position_at(self._engine, now - kept) + 1)

    async def _expired(self, orphans: Sequence[claims.Orphan], now: float) -> list[Sweep]:
        kept = self.settings.retention_unclaimed
        old = [] if kept is None else [orphan for orphan in orphans if orphan.oldest.time < now - kept]
        if kept is None or not old:
            return []
        below = await position_at(self._engine, now - kept) + 1
        return [Sweep(orphan.subject, 1, min(below, orphan.below or below)) for orphan in old]

    async def _relieve(self, ledger: claims.Ledger) -> int:
        """Let handled entries go, the oldest first, until there is room again."""
        stats = await self._engine.stats()
        removed = 0
        for step in range(1, _STEPS + 1):
            below = stats.first + -(-(stats.last + 1 - stats.first) * step // _STEPS)
            removed += await self._sweep(claimed(ledger, below))
            if (space := await self._engine.space()).share < _RELIEVED:
                return removed
        if space.share < _PRESSED:
            return removed
        log.warning(
            "the store is full to %.0f %%, and what fills it is not handled: publishers are refused at 90 %%. Start "
            "workers for what waits (tidings groups ls), act on dead letters (tidings dlq ls), or give it more room",
            100 * space.share,
        )
        return removed

    async def _sweep(self, sweeps: Sequence[Sweep]) -> int:
        if not sweeps:
            return 0
        await self._note(sweeps)
        return sum([await self._engine.purge(sweep.filter, sweep.first, sweep.below) for sweep in sweeps])

    def _alarm(self, ledger: claims.Ledger, orphans: Sequence[claims.Orphan]) -> None:
        for subject in {orphan.subject for orphan in orphans} - self._alarmed:
            self._alarmed.add(subject)
            if not ledger.read(subject):
                log.warning("events on %s are unclaimed: no group has ever wanted them (tidings ls)", subject)

    async def _turn(self) -> bool:
        """Take the turn, or keep it, for a while."""
        book, revision = await _load(self._engine)
        now = self._clock.time()
        if book.holder != self._name and book.until > now:
            return False
        mine = msgspec.structs.replace(book, holder=self._name, until=now + 1.5 * _SWEEP)
        return await _write(self._engine, mine, revision)

    async def _note(self, sweeps: Sequence[Sweep]) -> None:
        """Write down up to where entries may be gone, before they go."""
        while True:
            book, revision = await _load(self._engine)
            noted = book.noting(sweeps)
            if noted == book or await _write(self._engine, noted, revision):
                return


async def _load(engine: Engine) -> tuple[Book, int]:
    record = await engine.recall(_KEY)
    return (Book(), 0) if record is None else (msgspec.json.decode(record.value, type=Book), record.revision)


async def _write(engine: Engine, book: Book, revision: int) -> bool:
    """Whether nobody wrote first."""
    try:
        await engine.register(_KEY, msgspec.json.encode(book), revision)
    except Conflict:
        await asyncio.sleep(0)
        return False
    return True
