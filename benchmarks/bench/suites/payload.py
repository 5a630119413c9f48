"""Handling and publishing against the size of the body."""

from __future__ import annotations

from functools import partial

from ..benchmark import BROKER, CPU, RATE, WORKER, Benchmark, Case
from ..contenders import ABOUT
from .samples import handled, published

SIZES = {"128 B": 128, "1 KiB": 1024, "16 KiB": 16 * 1024}


def cases(quick: bool) -> list[Case]:
    count = 2_000 if quick else 20_000
    found = []
    for words, size in SIZES.items():
        for name in ("tidings", "nats-callback", "faststream-nats"):
            title = ABOUT[name].title if name != "nats-callback" else "bare nats-py"
            handle = partial(handled, name, count, size=size)
            publish = partial(published, name, count, "concurrent", sync="always", size=size)
            found.append(Case(f"{title}, handle {words}", handle, name))
            found.append(Case(f"{title}, publish {words}", publish, name))
    return found


BENCHMARK = Benchmark(
    "payload",
    "Rate against the size of the body",
    "Handle: as the benchmark 'handle'; publish: 1,000 concurrent, fsync always.",
    (RATE, WORKER, BROKER, CPU),
    cases,
)
