"""A worker that empties a large backlog: what the last messages cost beside the first, and what it comes to weigh."""

from __future__ import annotations

from functools import partial

from ..benchmark import RATE, Benchmark, Case, Metric
from .samples import handled, written


def cases(quick: bool) -> list[Case]:
    count = 100_000 if quick else 1_000_000
    return [
        Case(f"does nothing, {count:,} waiting", partial(handled, "tidings", count)),
        Case(
            f"README's save on SQLite, {count:,} waiting",
            partial(written, "tidings", count, "sqlite", "save", sync="always"),
        ),
    ]


BENCHMARK = Benchmark(
    "drain",
    "A large backlog, from its beginning to its end",
    "Tidings alone, one worker, 128 B, everything stored before it starts. CPU of the worker per message in the second "
    "tenth (the first has the imports) and in the last one, and how much its memory grew between.",
    (
        Metric("first_us", "second tenth", "µs/msg"),
        Metric("last_us", "last tenth", "µs/msg"),
        Metric("grown_mb", "memory grew by", "MB"),
        RATE,
    ),
    cases,
    rounds=1,
    quick_rounds=1,
)
