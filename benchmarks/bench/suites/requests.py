"""Request and reply: one responder process, one asker process."""

from __future__ import annotations

from functools import partial

from ..benchmark import P50, P99, RATE, Benchmark, Case, Metric, Sample
from ..children import child, run
from ..contenders import ABOUT
from ..job import Job
from ..servers import broker

ASKERS = ("tidings", "nats-callback", "faststream-nats")


def asked(contender: str, count: int, flight: int) -> Sample:
    with broker("nats") as server, child(Job(contender, "serve", server.url, server.pid, 0)) as responder:
        responder.hear()
        return run(Job(contender, "ask", server.url, server.pid, count, flight=flight))


def cases(quick: bool) -> list[Case]:
    count = 1000 if quick else 8000
    found = []
    for flight in (1, 16):
        for name in ASKERS:
            title = "bare nats-py" if name == "nats-callback" else ABOUT[name].title
            found.append(Case(f"{title}, {flight} at a time", partial(asked, name, count, flight), name))
    return found


BENCHMARK = Benchmark(
    "request",
    "Request and reply",
    "128 B question, small typed answer, NATS core.",
    (RATE, P50, P99, Metric("asker_us", "CPU, asker", "µs/request")),
    cases,
)
