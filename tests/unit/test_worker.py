"""The worker: concurrency, leases, settling, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

import tidings
from tidings.clock import ManualClock
from tidings.engine import Delivery, Done, Outcome, Release
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.handling import Handling
from tidings.message import compose
from tidings.publisher import Publisher
from tidings.registry import Handler, HandlerOptions, Registry
from tidings.worker import Worker

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
        self, function: Callable[..., Any], *, grace: float = 30.0, **options: Any
    ) -> tuple[Worker, Engine]:
        """One more process that runs the group."""
        engine = Engine(self.store, name=f"worker {len(self.workers)}")
        await engine.open()
        registry = Registry()
        handler = Handler(function, [New], HandlerOptions("g", **options))
        registry.add_handler(handler)
        publisher = Publisher(engine, registry, source="test", roots=["events.>"], clock=self.clock)
        await engine.declare([tidings.engine.Group("g", (tidings.engine.Claim("events.>"),), lease=LEASE)])
        policy = tidings.RetryPolicy(attempts=3, first=0, most=0)
        handling = Handling(handler, registry.plan(handler, []), publisher, "test", policy, 600.0)
        worker = Worker(engine, [handling], [], clock=self.clock, lease=LEASE, grace=grace)
        worker.start()
        self.workers.append(worker)
        return worker, engine

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


async def test_everything_is_handled_and_settled(bench: Bench) -> None:
    """A hundred messages, a hundred outcomes, nothing left in hand."""
    seen: list[int] = []

    async def handle(new: New) -> None:
        seen.append(new.n)

    worker, engine = await bench.worker(handle)
    bench.publish(*range(100))
    await until(lambda: len(engine.settled) == 100)
    assert sorted(seen) == list(range(100))
    await until(lambda: not worker.busy)
    assert bench.counts == (0, 0, 0, 0)
    assert engine.tried < 100, "outcomes are settled in batches"


@pytest.mark.parametrize("concurrency", [1, 3, None])
async def test_no_more_than_its_concurrency_at_once(bench: Bench, concurrency: int | None) -> None:
    """The limit holds however much waits, is used in full, and is sixteen without a word."""
    running, most, go = 0, 0, asyncio.Event()
    limit = concurrency or 16

    async def handle(new: New) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1

    await bench.worker(handle, concurrency=concurrency)
    bench.publish(*range(50))
    await until(lambda: running == limit)
    await bench.clock.advance(1)
    assert bench.counts[:2] == (50 - limit, limit), "nothing is leased before there is room for it"
    go.set()
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert most == limit


async def test_two_workers_share(bench: Bench) -> None:
    """Each message goes to one replica of the group."""
    seen: list[int] = []

    async def handle(new: New) -> None:
        seen.append(new.n)
        await asyncio.sleep(0)

    await bench.worker(handle, concurrency=2)
    await bench.worker(handle, concurrency=2)
    bench.publish(*range(100))
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert sorted(seen) == list(range(100))


# Leases


async def test_a_slow_handler_keeps_its_lease(bench: Bench) -> None:
    """Ten leases long, and nobody else gets the message."""
    calls, go = [], asyncio.Event()

    async def handle(new: New) -> None:
        calls.append(new.n)
        await go.wait()

    await bench.worker(handle)
    await bench.worker(handle)
    bench.publish(1)
    await until(lambda: calls)
    for _ in range(30):
        await bench.clock.advance(LEASE / 3)
    go.set()
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert calls == [1]


@pytest.mark.parametrize("error", [tidings.EngineUnavailable("away"), RuntimeError("our own mistake")])
async def test_renewing_goes_on_after_an_error(
    bench: Bench, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """One failed renewal, even by a bug, is logged; the next one in time keeps the lease."""
    calls, go = [], asyncio.Event()

    async def handle(new: New) -> None:
        calls.append(new.n)
        await go.wait()

    _, engine = await bench.worker(handle)
    bench.publish(1)
    await until(lambda: calls)
    for _ in range(6):
        engine.down["extend"] = error
        await bench.clock.advance(LEASE / 3)
        engine.down.clear()
        await bench.clock.advance(LEASE / 3)
    go.set()
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert calls == [1]
    assert "leases could not be renewed" in caplog.text


async def test_an_outcome_past_its_deadline_is_not_sent(bench: Bench) -> None:
    """When renewing failed until the lease was over, another worker has the message: nothing is said about it."""
    calls: list[str] = []
    go = asyncio.Event()

    async def slow(new: New) -> None:
        calls.append("slow")
        await go.wait()

    async def quick(new: New) -> None:
        calls.append("quick")

    one, cut = await bench.worker(slow, concurrency=1)
    bench.publish(1)
    await until(lambda: calls)
    cut.down["extend"] = tidings.EngineUnavailable("away")
    await bench.clock.advance(LEASE + 1)
    _, well = await bench.worker(quick)
    await until(lambda: well.settled)
    go.set()
    await until(lambda: not one.busy)
    assert calls == ["slow", "quick"]
    assert cut.tried == 0
    assert [type(outcome) for outcome in well.settled] == [Done]


async def test_settling_is_repeated_until_the_engine_is_back(bench: Bench) -> None:
    """An engine that is away for a while gets the outcome when it returns: the handler does not run again."""
    calls: list[int] = []

    async def handle(new: New) -> None:
        calls.append(new.n)

    _, engine = await bench.worker(handle)
    engine.down["settle"] = tidings.EngineUnavailable("away")
    bench.publish(1)
    for _ in range(20):
        await bench.clock.advance(1)
    assert (calls, engine.settled, bench.counts[1]) == ([1], [], 1)
    assert engine.tried > 5
    engine.down.clear()
    for _ in range(3):
        await bench.clock.advance(1)
    assert [type(outcome) for outcome in engine.settled] == [Done]
    assert bench.counts == (0, 0, 0, 0)


async def test_settling_ends_with_the_deadline(bench: Bench) -> None:
    """An engine that stays away gets no outcome after the lease: the message comes again instead."""
    calls: list[int] = []

    async def handle(new: New) -> None:
        calls.append(new.n)

    worker, engine = await bench.worker(handle)
    engine.down = {"settle": tidings.EngineUnavailable("away"), "extend": tidings.EngineUnavailable("away")}
    bench.publish(1)
    await until(lambda: calls)
    for _ in range(28):
        await bench.clock.advance(1)
    assert worker.busy
    for _ in range(3):
        await bench.clock.advance(1)
    await until(lambda: len(calls) == 2)
    engine.down.clear()
    await bench.clock.advance(2)
    assert bench.counts == (0, 0, 0, 0)


async def test_a_bug_in_settling_is_survived(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An error that is no engine error is logged loudly, and the settling of later messages goes on."""

    async def handle(new: New) -> None: ...

    _, engine = await bench.worker(handle)
    engine.down["settle"] = RuntimeError("our own mistake")
    bench.publish(1)
    await until(lambda: engine.tried)
    engine.down.clear()
    bench.publish(2)
    await until(lambda: len(engine.settled) == 1)
    assert "the worker itself failed to settle" in caplog.text


@pytest.mark.parametrize("error", [tidings.EngineUnavailable("away"), RuntimeError("our own mistake")])
async def test_pulling_goes_on_after_an_error(bench: Bench, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """No error ends the loop that pulls, or the group would stand still while the process looks alive."""
    seen: list[int] = []

    async def handle(new: New) -> None:
        seen.append(new.n)

    _, engine = await bench.worker(handle)
    await until(lambda: bench.store.stats().groups["g"].pulling)
    engine.down["pull"] = error
    bench.publish(1)
    for _ in range(20):
        await bench.clock.advance(1)
    bench.publish(2)
    assert seen == [1]
    engine.down.clear()
    await bench.clock.advance(6)
    await until(lambda: seen == [1, 2])
    assert "cannot pull" in caplog.text


# Stopping


async def test_stopping_lets_running_handlers_finish(bench: Bench) -> None:
    """What runs is finished and settled within the grace time, what waits is left to others untouched."""
    go, seen = asyncio.Event(), []

    async def handle(new: New, m: tidings.Message) -> None:
        await go.wait()
        seen.append((new.n, m.attempt))

    worker, engine = await bench.worker(handle, concurrency=2)
    bench.publish(*range(5))
    await until(lambda: bench.counts[1] == 2)
    stopping = asyncio.ensure_future(worker.stop())
    await bench.clock.advance(10)
    assert not stopping.done()
    go.set()
    async with asyncio.timeout(10):
        await stopping
    assert seen == [(0, 1), (1, 1)]
    assert [type(outcome) for outcome in engine.settled] == [Done, Done]
    assert bench.counts == (3, 0, 0, 0)
    bench.publish(9)
    await bench.clock.advance(5)
    assert len(seen) == 2, "a stopped worker takes nothing any more"


async def test_what_runs_past_the_grace_time_is_cancelled_and_handed_back(bench: Bench) -> None:
    """It is ready for another worker at once and with no attempt burnt."""
    ended, attempts = [], []

    async def stuck(new: New) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(new.n)

    async def well(new: New, m: tidings.Message) -> None:
        attempts.append(m.attempt)

    worker, engine = await bench.worker(stuck, grace=7)
    bench.publish(1, 2)
    await until(lambda: bench.counts[1] == 2)
    begin = bench.clock.monotonic()
    await stop(bench, worker)
    assert 7 <= bench.clock.monotonic() - begin < 10
    assert sorted(ended) == [1, 2]
    assert [type(outcome) for outcome in engine.settled] == [Release, Release]
    assert bench.counts == (2, 0, 0, 0)
    await bench.worker(well)
    await until(lambda: attempts == [1, 1])


async def test_a_handler_that_swallows_its_cancellation_has_succeeded(bench: Bench) -> None:
    """A handler that finishes its work when it is cancelled is done, and said to be."""

    async def handle(new: New) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    worker, engine = await bench.worker(handle, grace=2)
    bench.publish(1)
    await until(lambda: bench.counts[1] == 1)
    await stop(bench, worker)
    assert [type(outcome) for outcome in engine.settled] == [Done]
    assert bench.counts == (0, 0, 0, 0)


async def test_a_handler_that_ignores_its_cancellation_is_left_behind(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker stops all the same; the lease, renewed no more, gives the message to somebody else."""
    let_go, seen = asyncio.Event(), []

    async def stubborn(new: New) -> None:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    async def well(new: New, m: tidings.Message) -> None:
        seen.append(m.attempt)

    worker, engine = await bench.worker(stubborn, grace=2)
    bench.publish(1)
    await until(lambda: bench.counts[1] == 1)
    await stop(bench, worker, most=20)
    assert "ignores that it is cancelled" in caplog.text
    await bench.worker(well)
    await bench.clock.advance(LEASE)
    await until(lambda: seen == [1])
    let_go.set()
    await bench.clock.advance(1)
    assert engine.settled == []


async def test_stopping_ends_while_the_engine_is_away(bench: Bench) -> None:
    """Outcomes that cannot be settled hold the stop until their leases end, and not longer."""

    async def handle(new: New) -> None: ...

    worker, engine = await bench.worker(handle)
    engine.down["settle"] = tidings.EngineUnavailable("away")  # renewing works: it must not go on for ever
    bench.publish(1)
    await until(lambda: engine.tried)
    begin = bench.clock.monotonic()
    await stop(bench, worker, most=LEASE + 5)
    assert bench.clock.monotonic() - begin <= LEASE + 2
    assert not worker.busy


async def test_a_second_stop_signal_cancels_at_once(bench: Bench) -> None:
    """Cancelling `stop` cancels the handlers without waiting for the grace time."""
    ended: list[int] = []

    async def handle(new: New) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(new.n)

    worker, _ = await bench.worker(handle)
    bench.publish(1)
    await until(lambda: bench.counts[1] == 1)
    stopping = asyncio.ensure_future(worker.stop())
    await bench.clock.advance(1)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await until(lambda: ended == [1])


async def test_stopping_twice_or_unstarted_is_fine(bench: Bench) -> None:
    """`stop` is idempotent, and leaves no task behind."""

    async def handle(new: New) -> None: ...

    worker, _ = await bench.worker(handle)
    bench.publish(1)
    await until(lambda: bench.counts == (0, 0, 0, 0))
    await stop(bench, worker)
    await stop(bench, worker)
    await asyncio.gather(worker.stop(), worker.stop())
    await Worker(worker.engine, [], [], clock=bench.clock, lease=LEASE, grace=1).stop()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("tidings-")] == []


async def test_a_thread_gets_the_grace_time_too(bench: Bench) -> None:
    """A plain `def` handler that ends in time is settled as done."""
    go, seen = threading.Event(), []

    def handle(new: New) -> None:
        go.wait(10)
        seen.append(new.n)

    worker, engine = await bench.worker(handle)
    bench.publish(1)
    await until(lambda: bench.counts[1] == 1)
    stopping = asyncio.ensure_future(worker.stop())
    await bench.clock.advance(5)
    go.set()
    async with asyncio.timeout(10):
        await stopping
    assert (seen, [type(outcome) for outcome in engine.settled]) == ([1], [Done])


async def test_a_group_that_vanished_is_said_and_survived(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A removed group is a warning that asks whether it was removed, again and again, never a hot loop."""

    async def handle(new: New) -> None: ...

    await bench.worker(handle)
    await until(lambda: bench.store.stats().groups["g"].pulling)
    bench.store.forget("g")
    for _ in range(60):
        await bench.clock.advance(1)
    warnings = [record for record in caplog.records if "was it removed?" in record.getMessage()]
    assert 5 < len(warnings) < 40


async def test_a_crashed_workers_messages_go_to_another(bench: Bench) -> None:
    """After its leases have ended, with no attempt counted for what a crash interrupted."""
    seen: list[tuple[int, int]] = []

    async def stuck(new: New) -> None:
        await asyncio.Event().wait()

    async def well(new: New, m: tidings.Message) -> None:
        seen.append((new.n, m.attempt))

    _, engine = await bench.worker(stuck, grace=0.5)
    bench.publish(1, 2)
    await until(lambda: bench.counts[1] == 2)
    engine.abandon()
    await bench.worker(well)
    await bench.clock.advance(LEASE - 1)
    assert seen == []
    await bench.clock.advance(2)
    await until(lambda: sorted(seen) == [(1, 1), (2, 1)])
