"""The memory engine as a world: its time stands still until a case lets it pass."""

from __future__ import annotations

import asyncio

from tidings.clock import Clock, ManualClock
from tidings.engine import Engine
from tidings.engines.memory import MemoryEngine, MemoryStore


class MemoryWorld:
    """One store; each engine is a connection to it."""

    lease = 30.0
    moment = 0.1

    def __init__(self) -> None:
        self._clock = ManualClock()
        self._store = MemoryStore(self._clock)
        self._engines: list[MemoryEngine] = []

    @property
    def clock(self) -> Clock:
        return self._clock

    async def __aenter__(self) -> MemoryWorld:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for engine in self._engines:
            await engine.close()

    async def engine(self, *, patience: float | None = None) -> Engine:
        engine = MemoryEngine(self._store, name=f"connection {len(self._engines) + 1}")
        self._engines.append(engine)
        await engine.open()
        return engine

    async def crash(self, engine: Engine) -> None:
        assert isinstance(engine, MemoryEngine)
        engine.abandon()

    async def restart(self) -> None:
        """The store lives in this process: it ends with it and not before."""

    async def limit(self, size: int) -> None:
        self._store.limit = size

    async def wait(self, seconds: float) -> None:
        for _ in range(20):  # let what was begun get to where it waits before time moves
            await asyncio.sleep(0)
        await self._clock.advance(seconds)

    async def spread(self) -> None:
        """There is one store, and it knows."""
