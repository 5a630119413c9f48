"""Handlers that write to a database: one row for each small typed event."""

from __future__ import annotations

from functools import partial

from ..benchmark import BROKER, CPU, RATE, WORKER, Benchmark, Case
from ..contenders import ABOUT
from .samples import written

OURS = ("tidings", "nats-by-hand")
ONE = ("faststream-nats", "faststream-redis", "taskiq-nats")
MANY = ("faststream-nats-batch", "faststream-redis-batch")
JOBS = {"add": "adds an object", "save": "README's save", "batch": "batch, one statement"}


def cases(kind: str, quick: bool) -> list[Case]:
    made = []
    for writes, title in JOBS.items():
        ours, theirs = (4_000, 2_000) if quick else (20_000, 6_000)
        if writes == "batch":
            ours, theirs = 3 * ours, 5 * theirs
        for name in (*OURS, *(MANY if writes == "batch" else ONE)):
            count, sync = (ours, "always") if name in OURS else (theirs, "2m")
            sample = partial(written, name, count, kind, writes, sync=sync)
            made.append(Case(f"{title}: {ABOUT[name].title}", sample, name))
    return made


def _benchmark(kind: str, title: str, settings: str) -> Benchmark:
    return Benchmark(
        kind,
        f"Handle a message and write it to {title}",
        f"One worker process, 128 B typed body, one row each; {settings}. Tidings and the loop by hand with a broker "
        "that fsyncs every message, the others with their broker's defaults. 'README's save': an object, a flush for "
        "its id, an event with it, which Tidings commits with the row, and the others publish after their commit "
        "(the loop by hand writes an outbox and publishes it). 'Batch': one INSERT for all.",
        (RATE, WORKER, BROKER, CPU),
        partial(cases, kind),
    )


BENCHMARKS = (
    _benchmark("sqlite", "SQLite", "a file in WAL mode with synchronous=FULL for everybody, aiosqlite"),
    _benchmark("postgres", "PostgreSQL", "fsync and synchronous_commit on for everybody, asyncpg"),
)
