"""What a message costs, against how many groups of the same worker it does not concern."""

from __future__ import annotations

from functools import partial

from ..benchmark import BROKER, CPU, RATE, WORKER, Benchmark, Case
from ..contenders import ABOUT
from .samples import handled


def cases(quick: bool) -> list[Case]:
    count = 3_000 if quick else 20_000
    return [
        Case(
            f"{ABOUT[name].title}, {total} group{'s'[: total - 1]}",
            partial(handled, name, count, other_groups=total - 1),
            name,
        )
        for name in ("tidings", "nats-callback")
        for total in ((1, 50) if quick else (1, 5, 10, 25, 50))
    ]


BENCHMARK = Benchmark(
    "groups",
    "Cost per message against groups that do not match",
    "One worker runs them all; every message concerns one. Bare nats-py: a pull loop per group.",
    (CPU, WORKER, BROKER, RATE),
    cases,
    quick_rounds=3,
)
