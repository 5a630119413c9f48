"""Acknowledged publish: one after the other, 1,000 at a time, and in bulk."""

from __future__ import annotations

from functools import partial

from ..benchmark import BROKER, CPU, RATE, WORKER, Benchmark, Case
from ..contenders import ABOUT
from .samples import SLOW, published

HOWS = {
    "tidings": ("sequential", "concurrent", "many"),
    "tidings-redis": ("sequential", "concurrent", "many"),
    "nats-callback": ("sequential", "concurrent"),
    "faststream-nats": ("sequential", "concurrent"),
    "taskiq-nats": ("sequential", "concurrent"),
    "faststream-redis": ("sequential", "many"),
    "celery-redis": ("sequential",),
    "dramatiq-redis": ("sequential",),
}
WORDS = {"sequential": "sequential", "concurrent": "1,000 concurrent", "many": "in bulk"}


def cases(quick: bool) -> list[Case]:
    found = []
    for contender, hows in HOWS.items():
        about = ABOUT[contender]
        title = "bare nats-py" if contender == "nats-callback" else about.title
        for sync in ("always", "2m") if about.broker == "nats" else ("everysec",):
            for how in hows:
                count = (500 if quick else 3000) if how == "sequential" else (3000 if quick else 20_000)
                count = min(count, 500) if contender in SLOW else count
                sample = partial(published, contender, count, how, sync=sync)
                found.append(Case(f"{title}, {WORDS[how]}, fsync {sync}", sample, contender))
    return found


BENCHMARK = Benchmark(
    "publish",
    "Publish, acknowledged by the broker",
    "One process, 128 B. NATS R1 file: 'fsync always' before each acknowledgement, or '2m' (its default); Valkey: AOF "
    "every second. 'In bulk': publish_many of 1,000 (Tidings), 64 under way (FastStream Redis).",
    (RATE, WORKER, BROKER, CPU),
    cases,
)
