"""How a worker stops, and what a crash leaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

import tidings
from tidings.engine import Done, Release
from tidings.work.worker import Worker
from workbench import LEASE, Bench, New, stop, until

pytest_plugins = ("workbench",)


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


def test_the_end_of_the_event_loop_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """What `asyncio.run` cancels at its end, because nobody has closed the bus, has not failed by itself."""
    ended: list[str] = []

    async def leave() -> None:
        bus, begun = tidings.Bus("todo", settings=tidings.Settings(url="memory:")), asyncio.Event()

        @bus.on("events.>", group="g")
        async def handle(body: dict[str, int]) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("handle")

        await bus.work()
        await bus.publish("events.new", {})
        await begun.wait()

    asyncio.run(leave())
    assert ended == ["handle"]
    assert "attempt" not in caplog.text


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
    """A removed group is a warning that asks whether it was removed, once a minute, never a hot loop."""

    async def handle(new: New) -> None: ...

    await bench.worker(handle)
    await until(lambda: bench.store.stats().groups["g"].pulling)
    bench.store.forget("g")
    for _ in range(200):
        await bench.clock.advance(1)
    warnings = [record for record in caplog.records if "was it removed?" in record.getMessage()]
    assert len(warnings) == 4
    assert warnings[-1].getMessage().endswith(" s now)")


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
