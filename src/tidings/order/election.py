"""Who is active: one small record per ordered group, renewed by whoever it names.

No clocks of different machines are compared. A standby that has seen the record unchanged for a whole lease, by its
own clock, writes itself into it with the next epoch; the active one counts its own time from before each renewal and
takes itself for deposed after five sixths of the lease. Whoever stops resigns, so that the next one need not wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tidings.clock import Clock, timeout
from tidings.engine import Engine, Record
from tidings.errors import Closed, Conflict, EngineError
from tidings.logs import Lasting

from .standby import note

log = logging.getLogger("tidings.worker")

_SAFE: Final = 5 / 6
_MOST_PAUSE: Final = 1.0


class Term(msgspec.Struct, frozen=True):
    """The record."""

    epoch: int
    holder: str
    """Host, process and a number of its own; empty for nobody."""
    lease: float
    renewed: int = 0


def _key(group: str) -> str:
    return f"order.{group}"


async def term_of(engine: Engine, group: str) -> Term | None:
    """The record of a group; None when it never had an active worker."""
    record = await engine.recall(_key(group))
    return None if record is None else msgspec.json.decode(record.value, type=Term)


class Reign:
    """The time for which this worker is active. `until` is when it ends unless it is renewed."""

    def __init__(self, term: Term, revision: int, until: float) -> None:
        self.term = term
        self.revision = revision
        self.until = until

    @property
    def epoch(self) -> int:
        return self.term.epoch


class Election:
    """One worker's part in the election of one group."""

    def __init__(self, engine: Engine, group: str, *, clock: Clock, lease: float) -> None:
        self._engine = engine
        self._clock = clock
        self._lease = lease
        self._group = group
        self._me = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._pause = min(_MOST_PAUSE, lease / 10)
        self._writing = asyncio.Lock()
        self._shown: float | None = None
        self._trouble = Lasting(log, clock)

    async def win(self) -> Reign:
        """Wait until this worker is the active one. Raises `Closed` only."""
        seen, since = -1, 0.0
        while True:
            try:
                await self._show()
                record = await self._engine.recall(_key(self._group))
                self._trouble.over("group %s: who is active is seen again", self._group)
                if record is None:
                    return await self._won(await self._claim(1, 0))
                term = msgspec.json.decode(record.value, type=Term)
                if record.revision != seen:
                    seen, since = record.revision, self._clock.monotonic()
                if self._is_free(term, self._clock.monotonic() - since):
                    return await self._won(await self._claim(term.epoch + 1, record.revision))
            except Closed:
                raise
            except Conflict:
                pass  # somebody else was faster
            except EngineError as error:
                self._trouble.met("group %s: who is active cannot be seen: %s", self._group, error)
            await self._clock.sleep(self._pause)

    async def _show(self) -> None:
        """Let people see that this one stands by, once it does so for longer."""
        now = self._clock.monotonic()
        if self._shown is None:
            self._shown = now
        elif now - self._shown >= self._lease / 3:
            self._shown = now
            await note(self._engine, self._group, self._me, clock=self._clock, lease=self._lease)

    async def _won(self, reign: Reign) -> Reign:
        if self._shown is not None:
            self._shown = None
            await note(self._engine, self._group, self._me, clock=self._clock, lease=self._lease, there=False)
        return reign

    def _is_free(self, term: Term, unchanged: float) -> bool:
        # One that names us is a claim of ours whose answer was lost.
        return term.holder in ("", self._me) or unchanged >= max(term.lease, self._lease)

    async def _claim(self, epoch: int, revision: int) -> Reign:
        before = self._clock.monotonic()
        term = Term(epoch, self._me, self._lease)
        revision = await self._engine.register(_key(self._group), msgspec.json.encode(term), revision)
        return Reign(term, revision, before + self._lease * _SAFE)

    async def raised(self, reign: Reign, epoch: int) -> None:
        """Go on with a later epoch. Raises `Conflict` or an `EngineError`."""
        await self._write(reign, epoch=epoch)

    async def keep(self, reign: Reign) -> None:
        """Renew it, until it cannot be kept; returns then."""
        pause = self._lease / 3
        while (left := reign.until - self._clock.monotonic()) > 0:
            try:
                async with timeout(self._clock, left):
                    await self._clock.sleep(pause)
                    await self._renew(reign)
                pause = self._lease / 3
            except (Closed, Conflict, TimeoutError):
                return
            except EngineError as error:
                log.warning("group %s: being active could not be renewed: %s", self._group, error)
                pause = self._pause

    async def _renew(self, reign: Reign) -> None:
        try:
            await self._write(reign, renewed=reign.term.renewed + 1)
        except Conflict:
            # Ours, if the answer to the write before was lost.
            record = await self._engine.recall(_key(self._group))
            if record is None or not self._is_mine(record, reign):
                raise
            reign.revision = record.revision
            await self._write(reign, renewed=reign.term.renewed + 1)

    def _is_mine(self, record: Record, reign: Reign) -> bool:
        term = msgspec.json.decode(record.value, type=Term)
        return term.holder == self._me and term.epoch == reign.epoch

    async def _write(self, reign: Reign, **changes: Any) -> None:
        async with self._writing:
            before, term = self._clock.monotonic(), replace(reign.term, **changes)
            key, value = _key(self._group), msgspec.json.encode(term)
            reign.revision = await self._engine.register(key, value, reign.revision)
            reign.term, reign.until = term, before + self._lease * _SAFE

    async def resign(self, reign: Reign) -> None:
        """Let somebody else be active at once, if this one still is; else its time runs out by itself."""
        if (left := reign.until - self._clock.monotonic()) <= 0:
            return
        try:
            async with timeout(self._clock, left):
                await self._write(reign, holder="")
        except (EngineError, TimeoutError) as error:
            log.info("group %s: could not resign: %s", self._group, error)
