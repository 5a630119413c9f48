"""One file per benchmark; each has its `BENCHMARK`."""

from __future__ import annotations

from ..benchmark import Benchmark
from . import backlog, groups, handle, latency, memory, payload, publish, requests, startup

ALL: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (publish, handle, latency, requests, backlog, groups, payload, startup, memory)
}
