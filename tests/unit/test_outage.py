"""Outage mode: what is blamed, when a group probes, and what ends it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidings import EngineUnavailable, Message, NoResponder
from tidings.clock import ManualClock
from tidings.engine import Delivery, Done, Entry
from tidings.work.outage import DIFFERENT, FIRST, MOST, SEVERAL, Away, Outage, away
from workbench import Bench, New, until

pytest_plugins = ("workbench",)

SURE = Away(EngineUnavailable("nobody answers"), sure=True)
PERHAPS = Away(ConnectionRefusedError("no"), sure=False)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def outage(clock: ManualClock) -> Outage:
    return Outage("save", clock)


def of(position: int) -> Delivery:
    return Delivery(Entry(position, "events.new", 0.0, {}, b"{}"), "save", 1, 0, 0.0)


def fail(outage: Outage, position: int, trouble: Away = SURE) -> float | None:
    return outage.failed(of(position), outage.begun(), trouble)


def handle(outage: Outage, position: int) -> None:
    outage.handled(of(position), outage.begun())


class Units:
    """As much of a database as `away` asks."""

    def transient(self, error: BaseException) -> bool:
        return isinstance(error, LookupError)


def test_what_is_away() -> None:
    """The engine and what the database calls transient for sure; a refused connection of the handler's own, or a
    request that nobody answers, perhaps; nothing else."""
    units: Any = Units()
    seen = {type(e): away(e, units) for e in (EngineUnavailable("x"), LookupError(), ConnectionResetError())}
    assert {kind: trouble and trouble.sure for kind, trouble in seen.items()} == {
        EngineUnavailable: True,
        LookupError: True,
        ConnectionResetError: False,
    }
    perhaps = away(NoResponder("todo.count"), None)
    assert perhaps is not None
    assert not perhaps.sure
    for error in (LookupError(), ValueError(), TimeoutError(), OSError(28, "no space")):
        assert away(error, None) is None


def test_one_that_fails_while_others_are_handled_is_blamed(outage: Outage) -> None:
    """Its first failure is free, the next ones are its own; it never brings its group into outage mode."""
    assert fail(outage, 1) is not None
    for other in range(2, 12):
        handle(outage, other)
        assert fail(outage, 1) is None
    assert not outage.probing


def test_a_success_that_had_begun_before_proves_nothing(outage: Outage) -> None:
    """Something handled after the failure, but begun before it, may have got through just in time."""
    early = outage.begun()
    assert fail(outage, 1) is not None
    outage.handled(of(2), early)
    assert fail(outage, 1) is not None
    handle(outage, 3)
    assert fail(outage, 1) is None


def test_a_few_messages_bring_no_outage(outage: Outage) -> None:
    """However often they fail: others must not wait for them. They come back ever later, and no attempt is counted."""
    delays = [fail(outage, 1 + number % (DIFFERENT - 1)) or 0.0 for number in range(40)]
    assert not outage.probing
    assert 0 < delays[0] <= 0.5
    assert all(MOST / 2 <= delay <= MOST for delay in delays[-10:])


async def test_probing(outage: Outage, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Several failures in a row: the log says what is away, and nothing may begin before the next probe is due, ever
    later up to some seconds; a failed probe comes back behind the next; the first success ends it at once."""
    for position in range(SEVERAL):
        assert not outage.probing
        fail(outage, position)
    assert outage.probing
    assert "group save: what its handler needs is away, 5 failures in a row" in caplog.text
    assert "EngineUnavailable: nobody answers" in caplog.text
    pauses: list[float] = []
    for position in range(10, 20):
        pauses.append(await waited(outage, clock))
        delay = fail(outage, position)
        assert delay is not None
        assert outage.due < clock.monotonic() + delay
    assert 0.25 <= pauses[0] <= FIRST
    handle(outage, 20)
    assert await waited(outage, clock) == 0
    [_, end] = [record.getMessage() for record in caplog.records]
    assert end.startswith("group save: one is handled again after ")
    assert end.endswith("; 15 tries with 15 messages had failed")


async def waited(outage: Outage, clock: ManualClock) -> float:
    """Seconds until the next message may be asked for."""
    turn, begin = asyncio.ensure_future(outage.turn()), clock.monotonic()
    await asyncio.sleep(0)
    while not turn.done():
        await clock.advance(clock.next_due or 0.0)
    return clock.monotonic() - begin


async def test_what_had_begun_before_counts_as_no_probe(outage: Outage, clock: ManualClock) -> None:
    """Fifteen handlers that ran when the group began to probe fail as well: the first probe is as soon as ever."""
    marks = [outage.begun() for _ in range(15)]
    for position in range(SEVERAL):
        fail(outage, position)
    for position, mark in enumerate(marks, 100):
        assert outage.failed(of(position), mark, SURE) is not None
    assert await waited(outage, clock) <= FIRST


def test_perhaps_is_an_attempt_until_it_is_an_outage(outage: Outage) -> None:
    """A refused connection of the handler's own counts, as any failure does; no more once the group probes."""
    assert [fail(outage, position, PERHAPS) for position in range(SEVERAL)] == [None] * SEVERAL
    assert outage.probing
    assert fail(outage, 0, PERHAPS) is not None
    handle(outage, 10)
    assert fail(outage, 0, PERHAPS) is None


async def test_a_minute_without_what_is_needed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Of three hundred messages a few are tried, one at a time; none is an attempt. Seconds after its return all of
    them are handled, at the first attempt. The log has a line for the first, for the begin, and for the end."""
    caplog.set_level("INFO", "tidings")
    down, running, most = True, 0, 0
    failed: list[int] = []
    attempts: list[int] = []

    async def save(new: New, about: Message) -> None:
        nonlocal running, most
        if not down:
            attempts.append(about.attempt)
            return
        running += 1
        most = max(most, running) if len(failed) > 16 else 0
        await asyncio.sleep(0)
        running -= 1
        failed.append(new.n)
        raise EngineUnavailable("away")

    bench.publish(*range(300))
    await bench.worker(save)
    for _ in range(60):
        await bench.clock.advance(1)
    assert bench.counts[3] == 0
    assert 25 < len(failed) < 60, "sixteen at once, then a probe every few seconds"
    assert most == 1
    assert len(set(failed[-10:])) > 3, "the probes rotate"
    down = False
    await bench.clock.advance(MOST)
    await until(lambda: len(attempts) > 280)  # all but the few that were tried several times
    await bench.clock.advance(5 * MOST)
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert attempts == [1] * 300
    first, begin, *_, end = [record.getMessage() for record in caplog.records]
    assert first.startswith("handing the message back for 0.")
    assert "what its handler needs is away, 5 failures in a row (EngineUnavailable: away)" in begin
    assert f"all go on; {len(failed)} tries with " in end
    assert sum("away" in record.getMessage() for record in caplog.records) == 2


async def test_a_message_that_kills_its_connection_dies(bench: Bench) -> None:
    """It fails as if the database were away, and others are handled meanwhile: it ends as a dead letter with the
    attempts of its policy, and the others never wait."""

    async def save(new: New) -> None:
        if new.n == 0:
            raise EngineUnavailable("away")

    _, engine = await bench.worker(save)
    bench.publish(0)
    for number in range(1, 40):
        bench.publish(number)
        await bench.clock.advance(0.5)
        assert bench.counts[0] == 0
    [letter] = bench.store.dead.page("g", 0, 10)
    assert (letter.reason, letter.attempts, letter.failure.error) == ("handler_error", 3, "EngineUnavailable")
    assert sum(isinstance(outcome, Done) for outcome in engine.settled) == 39
