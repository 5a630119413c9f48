"""Testing an application: its own bus on a real engine in memory, with a clock that is moved by hand.

async with TestBus(bus) as t:
    await bus.publish(NewItem(item="x"))
    await t.settle()
    assert await t.published("events.todo.itemsaved")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from .bus import Bus
from .clock import Clock, ManualClock
from .engine import DeadLetter, Engine
from .engines.memory import MemoryEngine, MemoryStore
from .errors import TidingsError
from .message import Message
from .running import Running, units_of


class NotQuiet(TidingsError, AssertionError):
    """`settle` waited for its time limit and something still moved; the text says what."""


@asynccontextmanager
async def attached(bus: Bus, engine: Engine, clock: Clock, namespace: str = "tidings") -> AsyncIterator[Running]:
    """Run a bus on an engine that is open, instead of the one its settings name; leaving drains the bus and leaves the
    engine open. Its groups are declared; `work` starts its handlers."""
    async with AsyncExitStack() as stack:
        units = units_of(bus, stack)
        before, bus.clock = bus.clock, clock
        try:
            running = Running(bus, engine, namespace, units, stack)
        finally:
            bus.clock = before
        async with bus.replaced(running, clock):
            await running.declare()
            yield running


class TestBus:
    """Runs a bus in memory: same handlers, same retries, same transactions, nothing outside this process.

    Entering starts the workers of all groups (or of `groups`). The bus's own database is used as it is. What the
    application does when it starts and ends, `bus.lifespan` or `async with bus:`, changes nothing meanwhile.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(self, bus: Bus, *, groups: Sequence[str] | None = None) -> None:
        self.bus = bus
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self._groups = groups
        self._stack = AsyncExitStack()
        self._running: Running | None = None

    async def __aenter__(self) -> TestBus:
        try:
            await self._enter(self._stack)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _enter(self, stack: AsyncExitStack) -> None:
        engine = MemoryEngine(self.store)
        stack.push_async_callback(engine.close)
        await engine.open()
        running = await stack.enter_async_context(attached(self.bus, engine, self.clock))
        running.lent = True
        await running.work(self._groups)
        await self.clock.advance(0)  # what waits for its time begins to wait now
        self._running = running

    async def __aexit__(self, *_: object) -> None:
        closing = asyncio.ensure_future(self._stack.aclose())
        try:
            # Time goes on meanwhile, or a handler that hangs would have its grace for ever.
            while not (await asyncio.wait({closing}, timeout=0.05))[0]:
                await self.clock.advance(1.0)
        finally:
            closing.cancel()  # cut off: the application gets its bus back all the same
            await asyncio.wait({closing})
        closing.result()

    async def settle(self, timeout: float = 10.0) -> None:
        """Wait until nothing moves: no message ready, none in a handler, no follow-up on its way.

        Retries whose time has not come do not count: `await t.clock.advance(seconds)` brings it. Raises `NotQuiet`
        after `timeout` real seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while not await self._quiet():
                    pass
        except TimeoutError:
            raise NotQuiet(f"still moving after {timeout:g} s: {await self._engine.stats()}") from None

    async def _quiet(self) -> bool:
        """Whether it is quiet now; if not, returns after something has moved."""
        for _ in range(5):  # what was just woken gets its turn first
            await asyncio.sleep(0)
        worker = self._connected.worker
        busy = worker is not None and worker.busy
        if not busy and self.store.quiet_but_for(() if worker is None else worker.resting):
            return True
        try:
            # The store tells its own changes; a handler waiting for a database tells none, hence the short limit.
            async with asyncio.timeout(0.01):
                await self.store.changed()
        except TimeoutError:
            pass
        return False

    @property
    def _connected(self) -> Running:
        if self._running is None:
            raise TidingsError("enter it first: async with TestBus(bus) as t:")
        return self._running

    @property
    def _engine(self) -> MemoryEngine:
        engine = self._connected.engine
        assert isinstance(engine, MemoryEngine)
        return engine

    async def published(self, filter: str = ">") -> list[Message[Any]]:
        """Everything stored on these subjects, oldest first."""
        entries = await self._engine.read([filter], 0, 100_000)
        return [self._connected.decode(entry) for entry in entries]

    async def dead_letters(self, group: str | None = None) -> list[DeadLetter]:
        """The dead letters, of one group or all."""
        return await self._engine.dead_letters(group, 0, 100_000)

    async def redrive(self, group: str | None = None) -> int:
        """Put dead letters back to the groups that failed; returns how many."""
        return await self._engine.redrive(await self.dead_letters(group))
