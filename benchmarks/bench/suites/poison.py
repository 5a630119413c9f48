"""What messages that can never be handled cost those that can."""

from __future__ import annotations

from functools import partial

from ..benchmark import BROKER, CPU, RATE, WORKER, Benchmark, Case
from .samples import written

KINDS = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
POISON = {"none": "clean", "raises": "1 % raise after their flush", "refused": "1 % are refused by the database"}


def cases(quick: bool) -> list[Case]:
    count = 4_000 if quick else 20_000
    return [
        Case(
            f"{title}: {what}",
            partial(written, "tidings", count, kind, "save", sync="always", poison=poison),
        )
        for kind, title in KINDS.items()
        for poison, what in POISON.items()
    ]


BENCHMARK = Benchmark(
    "poison",
    "Handle messages some of which always fail",
    "Tidings alone, README's save, settings as for `sqlite` and `postgres`. The rate is that of the good messages, "
    "each counted once however often it runs; the poison is retried meanwhile, as the default policy says.",
    (RATE, WORKER, BROKER, CPU),
    cases,
)
