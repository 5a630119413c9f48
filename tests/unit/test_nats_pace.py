"""When a batch is worth its price."""

from __future__ import annotations

import pytest

from tidings.engines.nats.pace import FEW, Pace


class Watch:
    """A clock that says what it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


def load(pace: Pace, watch: Watch, count: int, seconds: float) -> bool:
    """So many messages that wait are sent as the pace says, and answered within some time; whether as a batch."""
    batch = pace.batch(count)
    pace.sent(count, batch)
    watch.now += seconds
    for part in [count] if batch else [1] * count:
        pace.answered(part)
    return batch


def test_what_is_given_stands(watch: Watch) -> None:
    """Where the server is known to fsync, more than a few waiting are a batch, and never where it is known not to."""
    assert [Pace(True, watch).batch(waiting) for waiting in (1, FEW, FEW + 1, 1000)] == [False, False, True, True]
    slow = Pace(False, watch)
    assert not any(load(slow, watch, 1000, 1.0) for _ in range(200))


def test_a_fast_server_is_never_sent_a_batch(watch: Watch) -> None:
    """While single messages take some microseconds each nothing is tried, whatever delays one load or another."""
    pace = Pace(None, watch)
    assert not any(load(pace, watch, 1000, seconds) for seconds in [0.3, 0.02, 0.4, 0.02, 0.5, 0.015] * 30)


def test_a_slow_server_is_found_out(watch: Watch) -> None:
    """Dear single messages lead to a batch, and when it costs less they stay."""
    pace = Pace(None, watch)
    assert [load(pace, watch, 1000, 0.2) for _ in range(2)] == [False, False]
    assert not pace.batch(50), "too few to measure anything"
    assert [load(pace, watch, 1000, 0.02) for _ in range(20)] == [True] * 20
    assert pace.batch(100), "0.2 ms each, against 10 ms for the batch"
    assert not pace.batch(40)


def test_a_batch_that_does_not_pay_is_left(watch: Watch) -> None:
    """Where a batch takes longer than its messages do by themselves few more are tried, but some are."""
    pace = Pace(True, watch)
    used = []
    for turn in range(500):
        count = 200 if turn % 50 == 7 else 40
        used.append(pace.batch(count))
        pace.sent(count, used[-1])
        watch.now += count * 10e-6 + 0.006 if used[-1] else count * 40e-6
        for part in [count] if used[-1] else [1] * count:
            pace.answered(part)
    assert used[0]
    assert sum(used[:10]) <= 5
    assert 1 <= sum(used[10:]) <= 10


def test_a_disk_that_became_slow_is_noticed(watch: Watch) -> None:
    """What was learned from a fast disk does not stand for ever."""
    pace = Pace(True, watch)
    load(pace, watch, 12, 12 * 30e-6)
    load(pace, watch, 100, 0.006)
    assert not pace.batch(100)
    for _ in range(4):
        load(pace, watch, 100, 100 * 0.0005)
    assert pace.batch(100)


def test_the_price_of_a_batch_is_learned(watch: Watch) -> None:
    """On a disk that syncs in no time a batch has to be larger than on a slow one."""
    for single, batch, few in ((0.0001, 0.003, 33), (0.00006, 0.005, 100), (0.002, 0.008, FEW)):
        pace = Pace(True, watch)
        load(pace, watch, 12, 12 * single)
        load(pace, watch, 1000, batch + 1000 * 10e-6)
        assert pace.few == pytest.approx(few, abs=1)


def test_single_messages_prove_nothing(watch: Watch) -> None:
    """What one message takes is latency, not load."""
    pace = Pace(None, watch)
    assert not any(load(pace, watch, 3, 0.003) for _ in range(50))
    assert not pace.batch(1000)


def test_another_server_is_asked_anew(watch: Watch) -> None:
    """After a reconnect nothing is taken for known, except what was given."""
    pace = Pace(None, watch)
    for _ in range(3):
        load(pace, watch, 1000, 0.2)
    pace.reset()
    assert not pace.batch(1000)
    given = Pace(True, watch)
    given.reset()
    assert given.batch(1000)
