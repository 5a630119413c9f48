"""The samples that several benchmarks take."""

from __future__ import annotations

import asyncio

from ..benchmark import Sample
from ..children import child, run
from ..contenders import ABOUT
from ..databases import database
from ..job import Job, now
from ..servers import broker
from ..writing import saved

SLOW = ("celery-redis", "dramatiq-redis")
"""Thousands of messages less, so that a round does not wait for them."""


MORE = 1024
"""Messages stored beyond those that are counted: nobody's last batch has to wait for its time to fill up."""


def share(contender: str, count: int) -> int:
    return count // 10 if contender in SLOW else count


def handled(
    contender: str, count: int, *, size: int = 128, waiting: int = 0, other_groups: int = 0, profile: str = ""
) -> Sample:
    """Store more messages (at least `waiting`), then start one worker process and let it handle `count` of them."""
    with broker(ABOUT[contender].broker) as server:
        fill = Job(
            contender, "fill", server.url, server.pid, max(count + MORE, waiting), size=size, other_groups=other_groups
        )
        run(fill)
        work = Job(
            contender, "work", server.url, server.pid, count, size=size, other_groups=other_groups, profile=profile
        )
        with child(work) as worker:
            worker.hear()
            return worker.hear()


def written(contender: str, count: int, kind: str, writes: str, *, sync: str, poison: str = "") -> Sample:
    """As `handled`, with a handler that writes into an empty database of the kind; poison is not among the counted."""
    with database(kind) as url, broker(ABOUT[contender].broker, sync) as server:
        fill = Job(contender, "fill", server.url, server.pid, count + MORE, database=url, writes=writes)
        run(fill)
        work = Job(contender, "work", server.url, server.pid, count, database=url, writes=writes, poison=poison)
        with child(work) as worker:
            worker.hear()
            return worker.hear()


def saved_beside(kind: str, poison: str, count: int = 256) -> Sample:
    """How long it takes from a worker's first message until all that can be saved are committed: `count`, or all but
    one of them."""
    with database(kind) as url, broker("nats", "always") as server:
        run(Job("tidings", "fill", server.url, server.pid, count, database=url, writes="save"))
        work = Job(
            "tidings", "work", server.url, server.pid, count, database=url, writes="save", poison=poison, poisoned=count
        )
        with child(work) as worker:
            worker.hear()
            begun = now()
            asyncio.run(saved(work, count if poison == "none" else count - 1))
            return {"saved_ms": (now() - begun) * 1e3}


def published(contender: str, count: int, how: str, *, sync: str, size: int = 128) -> Sample:
    with broker(ABOUT[contender].broker, sync) as server:
        return run(Job(contender, "publish", server.url, server.pid, count, size=size, how=how))
