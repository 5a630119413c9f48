"""From the moment a message was meant to leave to the moment its handler has it, at 200 messages per second."""

from __future__ import annotations

from functools import partial

from ..benchmark import CPU, P50, P99, Benchmark, Case, Sample
from ..children import child, run
from ..contenders import ABOUT, MEASURED_IDLE
from ..job import Job
from ..servers import broker

LEFT_OUT = ("faststream-nats-batch", "faststream-redis-batch")
RATE = 200.0


def paced(contender: str, seconds: int) -> Sample:
    """The worker is up before the clock runs: it has handled a first message, which does not count."""
    with broker(ABOUT[contender].broker, "always") as server:
        run(Job(contender, "fill", server.url, server.pid, 1))
        count = int(seconds * RATE)
        with child(Job(contender, "work", server.url, server.pid, count + 1)) as worker:
            worker.hear()
            with child(Job(contender, "pace", server.url, server.pid, count, rate=RATE)):
                return worker.hear()


def cases(quick: bool) -> list[Case]:
    seconds = 3 if quick else 10
    return [
        Case(ABOUT[name].title, partial(paced, name, seconds), name) for name in MEASURED_IDLE if name not in LEFT_OUT
    ]


BENCHMARK = Benchmark(
    "latency",
    "From publish to handler at 200 messages per second",
    "Open loop: the clock starts when a message is due, whatever happened to those before it. Publisher and worker are "
    "one process each; NATS with fsync always, Valkey every second.",
    (P50, P99, CPU),
    cases,
    rounds=7,
)
