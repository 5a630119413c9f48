"""What a worker process weighs, after it has handled some messages."""

from __future__ import annotations

from functools import partial

from ..benchmark import PEAK, RSS, Benchmark, Case
from ..contenders import ABOUT, MEASURED_IDLE
from .samples import handled


def cases(quick: bool) -> list[Case]:
    count = 500 if quick else 2_000
    return [Case(ABOUT[name].title, partial(handled, name, count), name) for name in MEASURED_IDLE]


BENCHMARK = Benchmark(
    "memory",
    "Memory of a worker process",
    "One handler that does nothing, after a backlog of some hundred (quick) or 2,000 messages; one process each.",
    (RSS, PEAK),
    cases,
    rounds=3,
    quick_rounds=1,
)
