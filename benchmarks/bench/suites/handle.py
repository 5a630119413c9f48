"""Handle messages that are there already, with a handler that does nothing."""

from __future__ import annotations

from functools import partial

from ..benchmark import BROKER, CPU, RATE, WORKER, Benchmark, Case
from ..contenders import ABOUT, MEASURED_IDLE
from .samples import handled, share


def cases(quick: bool) -> list[Case]:
    count = 10_000 if quick else 50_000
    return [Case(ABOUT[name].title, partial(handled, name, share(name, count)), name) for name in MEASURED_IDLE]


BENCHMARK = Benchmark(
    "handle",
    "Handle a message that asks for nothing",
    "One worker process, 128 B typed body, all stored before it starts; the first tenth is not counted. NATS: default "
    "sync interval (acks are not fsynced). Celery and Dramatiq: a tenth of the messages.",
    (RATE, WORKER, BROKER, CPU),
    cases,
)
