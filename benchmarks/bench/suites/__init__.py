"""One file per benchmark; each has its `BENCHMARK`, or one for each kind of what it measures."""

from __future__ import annotations

from ..benchmark import Benchmark
from . import backlog, database, drain, groups, handle, latency, memory, payload, poison, publish, requests, startup

ALL: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *(
            module.BENCHMARK
            for module in (publish, handle, latency, requests, backlog, drain, groups, payload, startup)
        ),
        memory.BENCHMARK,
        poison.BENCHMARK,
        poison.ONE_POISON,
        *database.BENCHMARKS,
    )
}
