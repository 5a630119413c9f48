"""The worker: concurrency, leases and settling."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

import tidings
from tidings.engine import Done, Outcome
from workbench import LEASE, Bench, Engine, New, until

pytest_plugins = ("workbench",)


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


async def test_a_full_store_takes_what_was_handled(bench: Bench) -> None:
    """While the engine cannot store that one message is to be tried again, others that were handled are settled: on a
    full server that is what makes space."""

    class Full(Engine):
        async def settle(self, outcomes: Sequence[Outcome]) -> None:
            if not all(isinstance(outcome, Done) for outcome in outcomes):
                raise tidings.StoreFull("nothing more is stored")
            await super().settle(outcomes)

    async def handle(new: New) -> None:
        if new.n == 1:
            raise ValueError("not today")

    _, engine = await bench.worker(handle, engine=Full)
    bench.publish(1)
    await bench.clock.advance(1)
    bench.publish(2, 3)
    for _ in range(5):
        await bench.clock.advance(1)
    assert sorted({outcome.delivery.entry.position for outcome in engine.settled}) == [2, 3]


async def test_what_is_refused_holds_up_no_other_outcome(bench: Bench) -> None:
    """An engine that refuses one dead letter again and again gets those of others meanwhile, and that one when it takes
    it; only that one stays in hand."""

    class Refusing(Engine):
        refuses = True

        async def settle(self, outcomes: Sequence[Outcome]) -> None:
            refused = [each for each in outcomes if self.refuses and each.delivery.entry.position == 1]
            await super().settle([each for each in outcomes if each not in refused])
            if refused:
                raise tidings.EngineError("the server refuses this one")

    async def handle(new: New) -> None:
        raise tidings.Reject("not today")

    await bench.worker(handle, engine=Refusing)
    bench.publish(1, 2)
    await until(lambda: bench.counts == (0, 1, 0, 1))
    bench.publish(3)
    await until(lambda: bench.counts == (0, 1, 0, 2))
    Refusing.refuses = False
    await bench.clock.advance(1)
    await until(lambda: bench.counts == (0, 0, 0, 3))


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
