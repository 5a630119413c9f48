"""Where a worker's time goes, by area of the code, from a cProfile of its event loop."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections import Counter
from pathlib import Path
from typing import Any

AREAS = {
    "site-packages/nats/aio/client.py": "nats-py: headers, dispatch, publish",
    "site-packages/nats/": "nats-py: protocol parser and the rest",
    "src/tidings/engines/nats/": "tidings: NATS engine (pull, wire, settle)",
    "src/tidings/engines/redis/": "tidings: Redis engine (pull, wire, settle)",
    "site-packages/redis/": "redis-py: protocol",
    "src/tidings/work/consumer.py": "tidings: worker (pulling)",
    "src/tidings/work/each.py": "tidings: worker (one message)",
    "src/tidings/work/pool.py": "tidings: worker (few tasks for many messages)",
    "src/tidings/stepping.py": "tidings: worker (few tasks for many messages)",
    "src/tidings/work/batches.py": "tidings: worker (batches)",
    "src/tidings/work/gathering.py": "tidings: worker (batches)",
    "src/tidings/work/hands.py": "tidings: worker (leases, settling)",
    "src/tidings/work/worker.py": "tidings: worker (start and stop)",
    "src/tidings/work/handling.py": "tidings: handling",
    "src/tidings/": "tidings: the rest (message, clock, logs, …)",
    "benchmarks/bench/": "the handler and its meter",
    "asyncio/": "asyncio: tasks, timers, callbacks",
    "contextlib.py": "contextlib",
}
OTHER = "the rest of the standard library"


def write(profiler: cProfile.Profile, file: Path) -> None:
    """The areas first, then the functions by own and by cumulated time."""
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text)
    shares = by_area(stats)
    total = sum(shares.values())
    for area, seconds in shares.most_common():
        print(f"{seconds / total:6.1%}  {area}", file=text)
    for order in ("tottime", "cumulative"):
        stats.sort_stats(order).print_stats(40)
    file.write_text(text.getvalue())


def by_area(stats: pstats.Stats) -> Counter[str]:
    """Seconds of own time; what is built in counts for whoever called it, waiting for the broker for nobody."""
    shares: Counter[str] = Counter()
    functions: dict[tuple[str, int, str], Any] = stats.stats  # type: ignore[attr-defined]
    for (file, _, name), (_, _, own, _, callers) in functions.items():
        if file != "~":
            shares[area_of(file)] += own
        elif "poll" not in name:
            for (caller, _, _), (_, _, share, _) in callers.items():
                shares[area_of(caller)] += share
    return shares


def area_of(file: str) -> str:
    return next((area for part, area in AREAS.items() if part in file), OTHER)
