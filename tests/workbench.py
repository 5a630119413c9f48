"""Workers on a memory store whose connections can be cut, and a clock that is moved by hand.

Use it with `pytest_plugins = ("workbench",)` in a test module: `bench` stops its workers after the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

import tidings
from tidings.clock import ManualClock
from tidings.engine import Delivery, Outcome
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.handlers import Handler, HandlerOptions
from tidings.message import compose
from tidings.publisher import Publisher
from tidings.registry import Registry
from tidings.work.handling import Handling
from tidings.work.worker import Worker

LEASE = 30.0


class New(tidings.Event, subject="events.new"):
    n: int


class Engine(MemoryEngine):
    """A connection that can be cut: `down` holds the calls that fail, `log` what was settled."""

    def __init__(self, store: MemoryStore, *, name: str = "memory") -> None:
        super().__init__(store, name=name)
        self.down: dict[str, Exception] = {}
        self.settled: list[Outcome] = []
        self.tried = 0

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.tried += 1
        self._fail("settle")
        await super().settle(outcomes)
        self.settled.extend(outcomes)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        self._fail("extend")
        await super().extend(deliveries)

    async def pull(self, group: str, limit: int, wait: float) -> list[Delivery]:
        self._fail("pull")
        return await super().pull(group, limit, wait)

    def _fail(self, call: str) -> None:
        if call in self.down:
            raise self.down[call]


class Bench:
    """A worker with one group on a store of its own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.workers: list[Worker] = []

    async def worker(
        self, function: Callable[..., Any], *, grace: float = 30.0, engine: type[Engine] = Engine, **options: Any
    ) -> tuple[Worker, Engine]:
        """One more process that runs the group."""
        connection = engine(self.store, name=f"worker {len(self.workers)}")
        await connection.open()
        registry = Registry()
        handler = Handler(function, [New], HandlerOptions("g", **options))
        registry.add_handler(handler)
        publisher = Publisher(connection, registry, source="test", roots=["events.>"], clock=self.clock)
        ordered = handler.options.order
        claim = tidings.engine.Claim("events.>")
        await connection.declare([tidings.engine.Group("g", (claim,), lease=LEASE, ordered=ordered)])
        policy = tidings.RetryPolicy(attempts=3, first=0, most=0)
        handling = Handling(handler, registry.plan(handler, []), publisher, "test", policy, 600.0)
        worker = Worker(connection, [handling], [], clock=self.clock, lease=LEASE, grace=grace)
        worker.start()
        self.workers.append(worker)
        return worker, connection

    def publish(self, *numbers: int) -> None:
        self.store.publish(
            [
                compose("events.new", b'{"n":%d}' % n, id=str(n), ce_type="events.new", source="test", now=0)
                for n in numbers
            ]
        )

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Waiting, leased, delayed, dead."""
        stats = self.store.stats().groups["g"]
        return stats.waiting, stats.leased, stats.delayed, stats.dead


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def stop(bench: Bench, worker: Worker, most: float = 120.0) -> None:
    """Stop while time goes on; fails if that takes longer than `most` seconds of it."""
    stopping, begin = asyncio.ensure_future(worker.stop()), bench.clock.monotonic()
    async with asyncio.timeout(10):
        while not stopping.done():
            assert bench.clock.monotonic() - begin < most, "the worker does not stop"
            await bench.clock.advance(1)
    await stopping


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    for worker in bench.workers:
        await stop(bench, worker)
