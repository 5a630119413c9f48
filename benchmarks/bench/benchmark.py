"""What a benchmark is: cases that are sampled in interleaved rounds, and metrics that are read from each sample."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

Sample = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """One number of a sample. The first metric of a benchmark is the one that is drawn."""

    key: str
    title: str
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True)
class Case:
    title: str
    sample: Callable[[], Sample]
    contender: str = "tidings"


@dataclass(frozen=True)
class Benchmark:
    name: str
    title: str
    conditions: str
    metrics: tuple[Metric, ...]
    cases: Callable[[bool], list[Case]]
    """With True, those for `--quick`."""
    rounds: int = 5
    quick_rounds: int = 2


@dataclass
class Measured:
    """All samples of one case; an error where a round failed."""

    case: Case
    samples: list[Sample] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def spread(self, key: str) -> tuple[float, float, float] | None:
        """Median, least and most of a metric; None if no sample has it."""
        values = [sample[key] for sample in self.samples if key in sample]
        return (statistics.median(values), min(values), max(values)) if values else None


RATE = Metric("rate", "rate", "msg/s", more_is_better=True)
CPU = Metric("cpu_us", "CPU, both", "µs/msg")
WORKER = Metric("worker_us", "client", "µs/msg")
BROKER = Metric("broker_us", "broker", "µs/msg")
P50 = Metric("p50_ms", "p50", "ms")
P99 = Metric("p99_ms", "p99", "ms")
RSS = Metric("rss_mb", "resident", "MB")
PEAK = Metric("peak_mb", "peak", "MB")
