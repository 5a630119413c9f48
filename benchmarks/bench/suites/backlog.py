"""What a message costs, against how many others wait."""

from __future__ import annotations

from functools import partial

from ..benchmark import BROKER, CPU, RATE, WORKER, Benchmark, Case
from ..contenders import ABOUT
from .samples import handled


def cases(quick: bool) -> list[Case]:
    backlogs = (1_000, 20_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    return [
        Case(f"{ABOUT[name].title}, {waiting:,} waiting", partial(handled, name, 1_000, waiting=waiting), name)
        for name in ("tidings", "nats-callback")
        for waiting in backlogs
    ]


BENCHMARK = Benchmark(
    "backlog",
    "Cost per message against the backlog",
    "One worker handles the first 1,000 of so many waiting messages, 128 B.",
    (CPU, WORKER, BROKER, RATE),
    cases,
    rounds=5,
    quick_rounds=3,
)
