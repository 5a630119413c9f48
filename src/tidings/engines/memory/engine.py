"""The memory engine: one connection to a `MemoryStore`, with the contract of `tidings.engine.Engine`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from tidings.engine import (
    Backlog,
    DeadLetter,
    Delivery,
    Entry,
    Group,
    GroupState,
    Headers,
    Lagged,
    Outcome,
    Outgoing,
    Record,
    Release,
    Reply,
    Responder,
    RetryAfter,
    Signal,
    Space,
    Stats,
    Stored,
)
from tidings.errors import Closed, NoResponder, RequestTimeout

from .bell import Bell
from .live import Server
from .log import check
from .store import MAX_MESSAGE, MemoryStore

T = TypeVar("T")


class MemoryEngine:
    """A connection to the store. Calls let other tasks run first and then act at once; none can be half done."""

    durable: Final = False
    max_message: Final = MAX_MESSAGE

    def __init__(self, store: MemoryStore, *, name: str = "memory") -> None:
        self.description = f"memory engine, connection {name!r}: nothing outlives this process"
        self._store = store
        self._clock = store.clock
        self._name = name
        self._open = False
        self._waits: set[Callable[[], None]] = set()
        self._stops: Counter[str] = Counter()
        self._listeners: set[Backlog] = set()
        self._servers: set[Server] = set()

    def __repr__(self) -> str:
        return self._name

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        if self._open:
            self._disconnect()
            self._store.hand_back(self)

    def abandon(self) -> None:
        """Crash: the connection vanishes as if its process was killed. What it holds stays leased until the leases
        end; calls that wait here raise `Closed`."""
        if self._open:
            self._disconnect()

    def _disconnect(self) -> None:
        self._open = False
        for listener in self._listeners:
            self._store.channels.leave(listener, Closed("the engine was closed while something listened"))
        for server in self._servers:
            self._store.servers.leave(server)
            server.cancel()
        for give_up in self._waits:
            give_up()

    # Groups

    async def declare(self, groups: Sequence[Group]) -> None:
        await self._turn()
        for group in groups:
            self._store.declare(group)

    async def forget(self, group: str) -> None:
        await self._turn()
        self._store.forget(group)

    async def states(self, entry: Entry) -> dict[str, GroupState]:
        await self._turn()
        return self._store.states(entry)

    # From publish to settle

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        await self._turn()
        return self._store.publish(messages)

    async def delayed(self, limit: int) -> list[Outgoing]:
        await self._turn()
        return self._store.delayed(limit)

    async def cancel(self, subject: str, id: str) -> bool:
        await self._turn()
        return self._store.cancel(subject, id)

    async def pull(self, group: str, limit: int, wait: float) -> list[Delivery]:
        await self._turn()
        end = self._clock.monotonic() + wait
        stops = self._stops[group]
        while True:
            queue = self._store.group(group)
            taken = queue.take(limit, self)
            if taken or self._stops[group] != stops or not await self._rung(queue.ready, end):
                return taken

    async def stop_pulling(self, group: str) -> None:
        """Pulls that wait here return `[]` at once. This engine holds nothing ahead, so nothing is handed back."""
        await self._turn()
        self._stops[group] += 1
        self._store.group(group).ready.ring()

    async def begin(self, delivery: Delivery) -> None:
        await self._turn()
        self._store.begin(delivery)

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        await self._turn()
        for outcome in outcomes:
            self._store.settle(outcome)

    async def keep(self, outcome: RetryAfter | Release) -> None:
        await self._turn()
        self._store.keep(outcome)

    async def parked(self, group: str, after: int = 0, limit: int = 100) -> list[Entry]:
        await self._turn()
        return self._store.group(group).parked(after, limit)

    async def unpark(self, group: str, positions: Sequence[int]) -> int:
        await self._turn()
        queue = self._store.group(group)
        return sum(queue.unpark(position) for position in positions)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        await self._turn()
        for delivery in deliveries:
            self._store.extend(delivery)

    # Looking at the log

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float = 0.0) -> list[Entry]:
        await self._turn()
        end = self._clock.monotonic() + wait
        log = self._store.log
        while True:
            found = log.after(filters, after, limit)
            after = max(after, log.last)  # what was looked at and did not match is not looked at again
            if found or not await self._rung(log.arrived, end):
                return found

    async def subjects(self, filter: str) -> dict[str, int]:
        await self._turn()
        return self._store.log.subjects(filter)

    async def stats(self) -> Stats:
        await self._turn()
        return self._store.stats()

    async def space(self) -> Space:
        await self._turn()
        return self._store.space()

    async def purge(self, filter: str, first: int, below: int) -> int:
        await self._turn()
        return self._store.purge(filter, first, below)

    # Dead letters

    async def dead_letters(self, group: str | None = None, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        await self._turn()
        return self._store.dead.page(group, after, limit)

    async def redrive(self, letters: Sequence[DeadLetter]) -> int:
        await self._turn()
        return self._store.redrive(letters)

    async def discard(self, letters: Sequence[DeadLetter]) -> int:
        await self._turn()
        return self._store.discard(letters)

    async def amend(self, letter: DeadLetter, body: bytes) -> bool:
        await self._turn()
        return self._store.amend(letter, body)

    async def bury(self, letters: Sequence[DeadLetter]) -> int:
        await self._turn()
        return self._store.bury(letters)

    async def replay(self, group: str, entries: Sequence[Entry], id: str) -> int:
        await self._turn()
        return self._store.replay(group, entries, id)

    # Live

    async def broadcast(self, channel: str, body: bytes, headers: Headers) -> int | bool | None:
        await self._turn()
        check(Outgoing(channel, body, dict(headers), ""), MAX_MESSAGE)
        return self._store.channels.say(Signal(channel, body, dict(headers)))

    @asynccontextmanager
    async def listen(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[Signal | Lagged]]:
        await self._turn()
        listener = self._store.channels.enter(channels)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            self._store.channels.leave(listener, StopAsyncIteration())

    async def request(self, subject: str, body: bytes, headers: Headers, timeout: float) -> Reply:
        await self._turn()
        check(Outgoing(subject, body, dict(headers), ""), MAX_MESSAGE)
        servers = self._store.servers.chosen(subject)
        if not servers:
            raise NoResponder(subject)
        answer: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        for server in servers:
            server.ask(subject, body, dict(headers), answer)
        self._store.request_begins()
        try:
            reply = await self._within(answer, self._clock.monotonic() + timeout, None)
        finally:
            self._store.request_ends()
        if reply is None:
            raise RequestTimeout(subject, timeout)
        return reply

    @asynccontextmanager
    async def serve(self, subject: str, group: str, responder: Responder) -> AsyncIterator[None]:
        """Leaving waits for the answers that were begun; cancel it to give them up."""
        await self._turn()
        server = Server(subject, group, responder)
        self._store.servers.enter(server)
        self._servers.add(server)
        try:
            yield
        finally:
            self._servers.discard(server)
            self._store.servers.leave(server)
            await server.finish()

    # Shared state

    async def recall(self, key: str) -> Record | None:
        await self._turn()
        return self._store.recall(key)

    async def register(self, key: str, value: bytes, revision: int) -> int:
        await self._turn()
        return self._store.register(key, value, revision)

    # Waiting

    def _check(self) -> None:
        if not self._open:
            raise Closed(f"{self.description} is not open: call open() first; after close() nothing works")

    async def _turn(self) -> None:
        """Let others run, as a call over a network would; a cancel arrives here, before anything was done."""
        self._check()
        await asyncio.sleep(0)
        self._check()

    async def _rung(self, bell: Bell, end: float) -> bool:
        """Wait for the bell; False when it is `end` first."""
        future = bell.join()
        try:
            return await self._within(future, end, False)
        finally:
            bell.leave(future)

    async def _within(self, future: asyncio.Future[T], end: float, late: T) -> T:
        """The future's result, or `late` when it is `end` first; `Closed` when the connection ends meanwhile."""
        rest = end - self._clock.monotonic()
        if rest <= 0 and not future.done():
            return late

        def give_up() -> None:
            if not future.done():
                future.set_result(late)

        timer = self._clock.call_later(rest, give_up)
        self._waits.add(give_up)
        try:
            result = await future
        finally:
            timer.cancel()
            self._waits.discard(give_up)
        self._check()
        return result
