"""What messages that can never be handled cost those that can."""

from __future__ import annotations

from functools import partial

from ..benchmark import BROKER, CPU, RATE, WORKER, Benchmark, Case, Metric
from .samples import saved_beside, written

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


ONE = {"none": "256 good ones", "raises": "one raises after its flush", "refused": "one is refused by the database"}
SAVED = Metric("saved_ms", "all others are saved after", "ms")


def one_among_many(quick: bool) -> list[Case]:
    return [
        Case(f"{title}: {what}", partial(saved_beside, kind, poison))
        for kind, title in KINDS.items()
        for poison, what in ONE.items()
    ]


ONE_POISON = Benchmark(
    "one-poison",
    "One message of 256 always fails",
    "As `poison`: 256 messages wait, and a worker starts. From its first call of the handler until the last of those "
    "that can be saved is committed; the difference to the clean run is what the one costs the others.",
    (SAVED,),
    one_among_many,
    quick_rounds=5,
)
