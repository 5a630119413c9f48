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


def load(pace: Pace, watch: Watch, count: int, seconds: float, *, batch: bool = False) -> None:
    """So many messages are sent together, and answered within some time: one by one, or all at once."""
    pace.sent(count)
    watch.now += seconds
    for part in [count] if batch else [1] * count:
        pace.answered(part)


def test_what_is_given_stands(watch: Watch) -> None:
    """Where the server is known to fsync, more than a few waiting are a batch, and never where it is known not to."""
    assert [Pace(True, watch).batch(waiting) for waiting in (1, FEW, FEW + 1, 1000)] == [False, False, True, True]
    assert not any(Pace(False, watch).batch(waiting) for waiting in (1, FEW, FEW + 1, 1000))


def test_a_fast_server_is_never_sent_a_batch(watch: Watch) -> None:
    """While single messages take some microseconds each nothing is tried."""
    pace = Pace(None, watch)
    for _ in range(100):
        assert not pace.batch(1000)
        load(pace, watch, 1000, 1000 * 20e-6)
    assert not pace.batches


def test_a_slow_server_is_tried_and_kept_if_it_pays(watch: Watch) -> None:
    """Dear single messages lead to two trials; batches stay when the better one costs clearly less, and do not come
    again when it does not."""
    for cost, kept in ((0.020, True), (0.190, False)):
        pace = Pace(None, watch)
        for _ in range(2):
            assert not pace.batch(1000)
            load(pace, watch, 1000, 0.200)
        for busy in (0.5, 0.0):
            assert pace.batch(1000)
            assert not pace.batch(FEW + 1), "too few to measure anything"
            load(pace, watch, 1000, cost + busy, batch=True)
        assert pace.batches is kept
        assert pace.batch(FEW + 1) is kept


def test_a_busy_moment_proves_nothing(watch: Watch) -> None:
    """A fast server that was slow once is not taken for one that fsyncs."""
    pace = Pace(None, watch)
    for seconds in (0.3, 0.01, 0.4, 0.01, 0.5):
        load(pace, watch, 1000, seconds)
        assert not pace.batch(1000)


def test_a_few_messages_prove_nothing(watch: Watch) -> None:
    """What a single message takes is latency, not load."""
    pace = Pace(None, watch)
    for _ in range(50):
        load(pace, watch, 3, 0.003)
    assert not pace.batch(1000)


def test_another_server_is_asked_anew(watch: Watch) -> None:
    """After a reconnect nothing is taken for known, except what was given."""
    pace = Pace(None, watch)
    for seconds, batch in ((0.2, False), (0.2, False), (0.01, True), (0.01, True)):
        load(pace, watch, 1000, seconds, batch=batch)
    assert pace.batches
    pace.reset()
    assert not pace.batch(1000)
    given = Pace(True, watch)
    given.reset()
    assert given.batch(1000)
