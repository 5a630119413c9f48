"""Suspects: who is one, that it runs alone, and that a crash is counted for it and for no other."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from tidings import EngineUnavailable, Message
from tidings.engine import Claim, Dead, Delivery, Done, Entry, Group, Outgoing, Release, RetryAfter
from tidings.engines.memory import MemoryEngine
from tidings.work.suspects import CRASHES, UNEXPLAINED, Floor, crash_loop, is_suspect
from workbench import LEASE, Bench, Engine, New, stop, until

pytest_plugins = ("workbench",)

GROUP = Group("g", (Claim("events.>"),), lease=LEASE)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of what was noted as begun, on any connection."""
    noted: list[int] = []
    begin = MemoryEngine.begin

    async def noting(self: MemoryEngine, delivery: Delivery) -> None:
        await begin(self, delivery)
        noted.append(delivery.entry.position)

    monkeypatch.setattr(MemoryEngine, "begin", noting)
    return noted


def delivery(deliveries: int, attempts: int = 0, crashes: int = 0) -> Delivery:
    return Delivery(Entry(1, "events.new", 0.0, {}, b"{}"), "g", deliveries, attempts, 0.0, None, crashes)


async def returned(bench: Bench, times: int) -> None:
    """Hand everything out and take it back so many times, as workers that die at once do."""
    for _ in range(times):
        engine = MemoryEngine(bench.store)
        await engine.open()
        assert await engine.pull("g", 1000, 0)
        engine.abandon()
        await bench.clock.advance(LEASE + 1)


def test_who_is_a_suspect() -> None:
    """Handed out three times more than its failures explain, or crashed before; a first delivery never is."""
    assert not is_suspect(delivery(1))
    assert not is_suspect(delivery(UNEXPLAINED))
    assert is_suspect(delivery(UNEXPLAINED + 1))
    assert not is_suspect(delivery(8, attempts=7)), "each delivery before ended with a failed attempt"
    assert is_suspect(delivery(1, crashes=1)), "a server may have forgotten how often it handed it out"


def test_the_limit_of_crashes() -> None:
    """One below the limit it runs once more; at the limit it is a dead letter that says what happened."""
    assert crash_loop(delivery(20, crashes=CRASHES - 1), "app:save") is None
    dead = crash_loop(delivery(20, attempts=2, crashes=CRASHES), "app:save")
    assert dead is not None
    assert (dead.reason, dead.attempts, dead.failure.handler) == ("crash_loop", 2 + CRASHES, "app:save")
    assert f"died {CRASHES} times" in dead.failure.message


async def test_alone_means_alone() -> None:
    """A suspect begins after those that run, ends before those that wait, and takes turns with other suspects; who is
    cancelled while waiting leaves no trace."""
    floor, running, most, order = Floor(), 0, 0, []

    async def one(name: str, alone: bool) -> None:
        nonlocal running, most
        async with floor.alone() if alone else floor.shared():
            order.append(name)
            running += 1
            most = max(most, running) if not alone else most
            assert not alone or running == 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not alone or running == 1
            running -= 1

    names = ["a", "b", "S", "c", "T", "d"]
    tasks = [asyncio.create_task(one(name, name.isupper())) for name in names]
    given_up = asyncio.create_task(one("X", True))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "S", "T", "c", "d"]
    assert most == 2
    async with asyncio.timeout(5), floor.alone():
        pass
    await floor.opened()


async def test_the_usual_way_costs_no_note(bench: Bench, begun: list[int]) -> None:
    """A hundred messages, each delivered for the third time, are handled without one note."""
    bench.store.declare(GROUP)
    bench.publish(*range(100))
    await returned(bench, UNEXPLAINED - 1)

    async def handle(new: New) -> None: ...

    _, engine = await bench.worker(handle)
    await until(lambda: len(engine.settled) == 100)
    assert begun == []


async def test_twenty_dead_workers_blame_nobody(
    bench: Bench, begun: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """What twenty processes took with them runs alone, one after the other, and is handled on its first attempt; one
    line of the log tells of all of it."""
    caplog.set_level("INFO", "tidings")
    bench.store.declare(GROUP)
    bench.publish(*range(30))
    await returned(bench, 20)
    running, attempts = 0, []

    async def handle(new: New, about: Message) -> None:
        nonlocal running
        running += 1
        await asyncio.sleep(0)
        assert running == 1
        running -= 1
        attempts.append(about.attempt)

    _, engine = await bench.worker(handle)
    await until(lambda: len(engine.settled) == 30)
    assert [type(outcome) for outcome in engine.settled] == [Done] * 30
    assert attempts == [1] * 30
    assert len(begun) == 30
    assert bench.counts == (0, 0, 0, 0)
    [said] = [record.getMessage() for record in caplog.records if "alone" in record.getMessage()]
    assert said.startswith("group g: messages were handed out 20 times and more and came to no end")


async def test_a_killer_dies_alone(bench: Bench, begun: list[int]) -> None:
    """A message that kills its process is a dead letter after its crashes; what was in hand beside it is handled, and
    none of it has a crash or an attempt."""
    handled: list[int] = []
    dying: list[Engine] = []

    async def handle(new: New) -> None:
        if new.n == 7:
            dying.append(engine)
            engine.abandon()
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        handled.append(new.n)

    bench.store.declare(GROUP)
    bench.publish(*range(20))
    for lives in range(UNEXPLAINED + CRASHES):
        worker, engine = await bench.worker(handle, concurrency=8)
        await until(partial(dying.__contains__, engine))
        await stop(bench, worker)
        await bench.clock.advance(LEASE + 1)
        assert bench.counts[3] == 0, lives
    await bench.worker(handle, concurrency=8)
    await until(lambda: bench.counts == (0, 0, 0, 1))
    [letter] = bench.store.dead.page("g", 0, 10)
    assert (letter.reason, letter.entry.body, letter.attempts) == ("crash_loop", b'{"n":7}', CRASHES)
    assert set(handled) == set(range(20)) - {7}
    assert begun.count(letter.entry.position) == CRASHES


async def test_stopping_in_the_middle_is_no_crash(bench: Bench) -> None:
    """A worker that is stopped while a suspect runs hands it back with the note taken back."""
    bench.store.declare(GROUP)
    bench.publish(1)
    await returned(bench, UNEXPLAINED)
    runs: list[int] = []

    async def hang(new: New) -> None:
        runs.append(new.n)
        await asyncio.Event().wait()

    worker, engine = await bench.worker(hang, grace=1.0)
    await until(lambda: runs)
    await stop(bench, worker)
    assert [type(outcome) for outcome in engine.settled] == [Release]
    other = MemoryEngine(bench.store)
    await other.open()
    [again] = await other.pull("g", 1, 0)
    assert (again.crashes, again.attempts) == (0, 0)


async def test_nothing_runs_without_its_note(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the engine cannot note that a suspect begins, it is handed back, and runs once the engine can."""
    bench.store.declare(GROUP)
    bench.publish(1)
    await returned(bench, UNEXPLAINED)
    runs: list[int] = []

    async def handle(new: New) -> None:
        runs.append(new.n)

    async def away(self: MemoryEngine, delivery: Delivery) -> None:
        raise EngineUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryEngine, "begin", away)
        _, engine = await bench.worker(handle)
        await until(lambda: engine.settled)
        assert (runs, [type(outcome) for outcome in engine.settled]) == ([], [Release])
    await bench.clock.advance(1)
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert runs == [1]


async def test_orderly_stops_blame_nobody(bench: Bench, begun: list[int]) -> None:
    """What ten workers in a row handed back when they were stopped in the middle of it runs together, with no note."""
    bench.publish(*range(5))
    running: list[int] = []

    async def hang(new: New) -> None:
        running.append(new.n)
        await asyncio.Event().wait()

    for _ in range(10):
        worker, _ = await bench.worker(hang, grace=1.0)
        await until(lambda: len(running) == 5)
        await stop(bench, worker)
        running.clear()
    await bench.worker(hang)
    await until(lambda: len(running) == 5)
    assert begun == []


async def test_what_cannot_be_read_needs_not_run_alone(bench: Bench, begun: list[int]) -> None:
    """A suspect that no handler will see is a dead letter at once, without a note."""
    bench.store.declare(GROUP)
    bench.store.publish([Outgoing("events.new", b"not JSON", {}, "1")])
    await returned(bench, UNEXPLAINED)

    async def handle(new: New) -> None: ...

    _, engine = await bench.worker(handle)
    await until(lambda: engine.settled)
    assert [(type(o), getattr(o, "reason", "")) for o in engine.settled] == [(Dead, "undecodable")]
    assert begun == []


@pytest.mark.parametrize("waits", [True, False])
async def test_a_suspect_that_cancels_its_own_task_has_one_outcome(bench: Bench, waits: bool) -> None:
    """Where it waits for something it has failed, where it returns it is done; nothing is said of it twice."""
    bench.store.declare(GROUP)
    bench.publish(1)
    await returned(bench, UNEXPLAINED)

    async def handle(new: New) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if waits:
            await asyncio.Event().wait()

    worker, engine = await bench.worker(handle)
    await until(lambda: engine.settled)
    await stop(bench, worker)
    first = engine.settled[0].delivery
    outcomes = [type(outcome) for outcome in engine.settled if outcome.delivery is first]
    assert outcomes == [RetryAfter if waits else Done]
