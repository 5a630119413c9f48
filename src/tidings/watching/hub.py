"""Reads some subjects of the log once for all who watch them in this process: browsers, and `receipt.wait`.

A watcher has no queue of entries, only a position: one that is slow reads from the log what is no longer kept here.
Beside the log the hub hears of failures (see `failures`) of those groups that could have emitted what is watched.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final

from .. import claims
from ..clock import SystemClock
from ..engine import Engine, Entry, Lagged, Signal
from ..errors import Closed, Conflict, EngineError, TidingsError
from ..logs import Lasting
from ..retention import oldest_whole
from .failures import Failed, channel, heard
from .progress import leading

log = logging.getLogger("tidings.hub")

KEPT: Final = 256  # entries in memory, for all watchers together
PAGE: Final = 100  # entries read from the log at once
FAILURES: Final = 256  # failures that wait for one watcher
_IDLE: Final = 30.0  # seconds that one read waits; a hub that nobody watches ends after it
_LEDGER_KEPT: Final = 60.0  # seconds
_LOG_KEY: Final = "push-log"


class Reader:
    """One watcher's place in the log. Everything behind `position` is still to come."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.ended = False
        """Whether it watches no more."""
        self._failures: deque[Failed | Lagged] = deque()
        self._news = asyncio.Event()

    def wake(self) -> None:
        self._news.set()

    def end(self) -> None:
        """Watch no more: `Hub.follow` ends."""
        self.ended = True
        self.wake()

    def tell(self, failed: Failed | Lagged) -> None:
        if len(self._failures) >= FAILURES:  # it takes none: all that it has to know is that
            self._failures.clear()
            failed = Lagged(None)
        self._failures.append(failed)

    def failures(self) -> list[Failed | Lagged]:
        """Those that wait, and where some are missing; they are the caller's now."""
        taken = list(self._failures)
        self._failures.clear()
        return taken

    async def news(self) -> None:
        """Wait until the hub has something since the last call."""
        await self._news.wait()
        self._news.clear()


class Hub:
    """The one reader of some subjects in this process. It begins with the first watcher and ends after the last."""

    def __init__(self, engine: Engine, filters: Sequence[str], namespace: str = "tidings") -> None:
        self._engine = engine
        self.filters = list(filters)
        self._namespace = namespace
        # Weak: a stream that is given up before its first byte is never told that it has ended.
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._kept: deque[Entry] = deque(maxlen=KEPT)
        self._floor = 0
        self._position = 0
        self._task: asyncio.Task[None] | None = None
        self._over = False  # it reads no more, but is not done yet
        self._starting = asyncio.Lock()
        clock = SystemClock()
        self._away, self._deaf = Lasting(log, clock), Lasting(log, clock)
        self.log_id = ""
        """Names this log: positions of another one (the data were deleted, the engine exchanged) mean nothing here."""

    async def join(self) -> tuple[Reader, int]:
        """A watcher at the log's end, and the oldest position from which everything behind is still stored.

        Raises `EngineUnavailable` when the engine cannot be asked.
        """
        reader = Reader(0)
        self._readers.add(reader)  # first, so that a hub that is about to end for want of watchers goes on
        await self._start()
        stats = await self._engine.stats()
        reader.position = stats.last
        return reader, max(stats.first, await oldest_whole(self._engine, self.filters)) - 1

    async def entries(self, reader: Reader) -> AsyncGenerator[Entry, None]:
        """Everything behind the watcher's position, then whatever comes. Ends when the engine does not answer."""
        async for news in self.follow(reader):
            if isinstance(news, Entry):
                yield news

    async def follow(self, reader: Reader) -> AsyncGenerator[Entry | Failed | Lagged, None]:
        """As `entries`, with the failures in between, each behind the message that it is about, and `Lagged` where
        failures may be missing: they can be asked for."""
        while not reader.ended:
            failures = reader.failures()  # before the entries: what they are about is among those
            try:
                found = await self._behind(reader.position)
            except EngineError as error:
                self._away.met("push waits for the engine, watchers are sent away to come again: %s", error)
                return
            for entry in found:
                reader.position = entry.position
                yield entry
            for failed in failures:
                yield failed
            if not found and not failures:
                if self._task is None or self._task.done():
                    return
                await reader.news()

    async def close(self) -> None:
        """End the reading and all streams; their browsers reconnect, to another process if there is one."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _start(self) -> None:
        async with self._starting:
            if self._task is not None and self._over:
                await asyncio.wait([self._task])
            if self._task is None or self._task.done():
                self._over = False
                self.log_id = await log_id(self._engine)
                self._floor = self._position = (await self._engine.stats()).last
                self._kept.clear()
                self._task = asyncio.create_task(self._run(), name="tidings-hub")
                self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        hearing = asyncio.create_task(self._hear_failures(), name="tidings-hub-failures")
        try:
            await self._read_all()
        finally:
            self._over = True
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def _read_all(self) -> None:
        pause = 0.1
        while self._readers:
            try:
                entries = await self._engine.read(self.filters, self._position, PAGE, wait=_IDLE)
            except Closed:
                return
            except EngineError as error:
                self._away.met("push waits for the engine: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
                continue
            pause = 0.1
            self._away.over("push reads on")
            self._take(entries)

    async def _hear_failures(self) -> None:
        emitters = Emitters(self._engine, self.filters)
        missed = False
        while True:
            try:
                async with self._engine.listen([channel(self._namespace)]) as signals:
                    self._deaf.over("failures are heard again")
                    if missed:
                        self._tell([Lagged(None)])
                    await self._hear(signals, emitters)
            except Closed:
                return
            except TidingsError as error:
                self._deaf.met("failures are not heard at the moment: %s", error)
            missed = True
            await asyncio.sleep(1.0)

    async def _hear(self, signals: AsyncIterator[Signal | Lagged], emitters: Emitters) -> None:
        async for signal in signals:
            if isinstance(signal, Lagged):
                self._tell([signal])
                continue
            concerned = [failed for failed in heard(signal.body) if await emitters.include(failed.group)]
            if not concerned:
                continue
            # What failed may be stored and not read yet, and has to come before its failure.
            while entries := await self._engine.read(self.filters, self._position, PAGE):
                self._take(entries)
            self._tell(concerned)

    def _tell(self, failures: Sequence[Failed | Lagged]) -> None:
        for reader in self._readers:
            for failed in failures:
                reader.tell(failed)
        self._wake_all()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("push itself failed; it begins again with the next browser", exc_info=error)
        self._wake_all()

    def _take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.position > self._position:
                self._position = entry.position
                if len(self._kept) == KEPT:
                    self._floor = self._kept[0].position
                self._kept.append(entry)
        if entries:
            self._wake_all()

    def _wake_all(self) -> None:
        for reader in self._readers:
            reader.wake()

    async def _behind(self, position: int) -> Sequence[Entry]:
        """Some entries behind a position: from memory if all of them are there, else a page of the log."""
        while position < (floor := self._floor):
            if page := await self._engine.read(self.filters, position, PAGE):
                return page
            position = floor  # not the floor of now: what has risen above it meanwhile is read, too
        found: list[Entry] = []
        for entry in reversed(self._kept):
            if entry.position <= position:
                break
            found.append(entry)
        return found[::-1]


class Emitters:
    """Which groups can emit something that matches the filters, by what the ledger says of them."""

    def __init__(self, engine: Engine, filters: Sequence[str]) -> None:
        self._engine = engine
        self._filters = filters
        self._groups: set[str] = set()
        self._found: dict[str, claims.Claimant] = {}
        self._until = 0.0

    async def include(self, group: str) -> bool:
        """Whether the group is one of them. The ledger is read again for a new one, and once a minute."""
        now = asyncio.get_running_loop().time()
        if now >= self._until or group not in self._groups:
            ledger, _ = await claims.load(self._engine)
            self._groups, self._until = {group, *ledger.groups}, now + _LEDGER_KEPT
            self._found = leading(ledger, self._filters)
        return group in self._found


async def log_id(engine: Engine) -> str:
    """The log's name, given once by whoever comes first and kept beside it."""
    while True:
        record = await engine.recall(_LOG_KEY)
        if record is not None:
            return record.value.decode()
        try:
            await engine.register(_LOG_KEY, secrets.token_hex(4).encode(), 0)
        except Conflict:
            await asyncio.sleep(0)
