"""What Tidings wants to be, as ratios of medians within one run, and whether a run has reached it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .benchmark import Measured

Results = Mapping[str, Sequence[Measured]]
Choose = Callable[[Iterable[float]], float]

CALLBACK = "bare nats-py, callback pull loop"
ONE_BY_ONE = ("FastStream NATS", "FastStream Redis", "Taskiq NATS", "Celery Redis", "Dramatiq Redis")
WRITERS = ("FastStream NATS", "FastStream Redis", "Taskiq NATS")
BY_HAND = "by hand: nats-py and SQLAlchemy"
BATCHES = ("FastStream NATS, batch", "FastStream Redis, batch")
PEERS = (*ONE_BY_ONE, *BATCHES)


@dataclass(frozen=True)
class Goal:
    """The median of `ours`, divided by that of the best of `theirs`, is at least (or at most) the limit."""

    words: str
    benchmark: str
    metric: str
    ours: str
    theirs: tuple[str, ...]
    limit: float
    at_most: bool = False
    best: Choose = max
    """Of theirs: the one that is compared with."""
    spread: Choose | None = None
    """Instead of the median of theirs, this one of its rounds."""

    def ratio(self, results: Results) -> float | None:
        """None if the run has not all of it."""
        found = {one.case.title: one for one in results.get(self.benchmark, ())}
        wanted = [found[title] for title in (self.ours, *self.theirs) if title in found and found[title].samples]
        if len(wanted) != 1 + len(self.theirs):
            return None
        ours, *theirs = wanted
        return _median(ours, self.metric) / self.best(self._of_theirs(one) for one in theirs)

    def reached(self, ratio: float) -> bool:
        return ratio <= self.limit if self.at_most else ratio >= self.limit

    def _of_theirs(self, one: Measured) -> float:
        if self.spread is None:
            return _median(one, self.metric)
        return self.spread(sample[self.metric] for sample in one.samples)


def _median(one: Measured, metric: str) -> float:
    spread = one.spread(metric)
    assert spread is not None, f"{one.case.title} has no {metric}"
    return spread[0]


def _database(name: str, kind: str) -> list[Goal]:
    def goal(words: str, job: str, theirs: Iterable[str], limit: float) -> Goal:
        others = tuple(f"{job}: {title}" for title in theirs)
        return Goal(f"{name}, {words}", kind, "rate", f"{job}: Tidings", others, limit)

    return [
        goal("a handler that adds an object / the group commit by hand", "adds an object", [BY_HAND], 0.6),
        goal("a handler that adds an object / the fastest peer", "adds an object", WRITERS, 2.5),
        goal("README's save / the fastest peer", "README's save", WRITERS, 2.5),
        goal("a batch with one statement / FastStream NATS", "batch, one statement", BATCHES[:1], 1.5),
        goal("a batch with one statement / FastStream Redis", "batch, one statement", BATCHES[1:], 1.0),
    ]


def _poison(name: str) -> list[Goal]:
    whats = ("1 % raise after their flush", "1 % are refused by the database")
    return [
        Goal(f"{name}, {what} / clean", "poison", "rate", f"{name}: {what}", (f"{name}: clean",), 0.5) for what in whats
    ]


def _rise(words: str, benchmark: str, fewest: str, most: str) -> Goal:
    return Goal(words, benchmark, "cpu_us", f"Tidings, {most}", (f"Tidings, {fewest}",), 1.34, at_most=True)


GOALS = (
    *(
        Goal(f"Publish, an fsync each: {ours} / {against}", "publish", "rate", f"Tidings, {ours}, fsync always", it, n)
        for ours, against, it, n in (
            ("1,000 concurrent", "nats-py", ("bare nats-py, 1,000 concurrent, fsync always",), 6),
            ("in bulk", "nats-py's concurrent", ("bare nats-py, 1,000 concurrent, fsync always",), 8),
            ("1,000 concurrent", "FastStream without fsync", ("FastStream NATS, 1,000 concurrent, fsync 2m",), 1),
            ("in bulk", "FastStream without fsync", ("FastStream NATS, 1,000 concurrent, fsync 2m",), 1),
        )
    ),
    Goal("Handle one / the bare callback loop", "handle", "rate", "Tidings", (CALLBACK,), 0.8),
    Goal("Handle one / the fastest peer", "handle", "rate", "Tidings", ONE_BY_ONE, 5),
    Goal("Handle a batch / FastStream NATS, batch", "handle", "rate", "Tidings, batch", BATCHES[:1], 1.5),
    Goal("Handle a batch / FastStream Redis, batch", "handle", "rate", "Tidings, batch", BATCHES[1:], 1),
    Goal("On Valkey, handle one / FastStream Redis", "handle", "rate", "Tidings on Valkey", ("FastStream Redis",), 5),
    Goal("On Valkey, a batch / FastStream Redis", "handle", "rate", "Tidings on Valkey, batch", BATCHES[1:], 0.8),
    Goal(
        "Handle one, CPU / the thriftiest peer, batches too",
        "handle",
        "cpu_us",
        "Tidings",
        PEERS,
        1,
        at_most=True,
        best=min,
    ),
    Goal("Latency, p50 / the bare callback loop", "latency", "p50_ms", "Tidings", (CALLBACK,), 1.3, at_most=True),
    Goal(
        "Latency, p99 / the largest of the callback loop's rounds",
        *("latency", "p99_ms", "Tidings", (CALLBACK,), 1),
        at_most=True,
        spread=max,
    ),
    Goal(
        "On Valkey, latency, p50 / FastStream Redis",
        *("latency", "p50_ms", "Tidings on Valkey", ("FastStream Redis",), 1),
        at_most=True,
    ),
    *(
        Goal(
            f"Ask, {n} at a time / nats-py",
            "request",
            "rate",
            f"Tidings, {n} at a time",
            (f"bare nats-py, {n} at a time",),
            0.7,
        )
        for n in (1, 16)
    ),
    _rise("CPU per message, 1,000,000 waiting / 1,000", "backlog", "1,000 waiting", "1,000,000 waiting"),
    _rise("CPU per message, 50 groups / 1", "groups", "1 group", "50 groups"),
    *_database("SQLite", "sqlite"),
    *_database("PostgreSQL", "postgres"),
    *_poison("SQLite"),
    *_poison("PostgreSQL"),
)


def table(results: Results) -> str:
    """One line for each goal of which the run has the numbers."""
    lines = ["| | wanted | reached | |", "|---|---:|---:|---|"]
    for goal in GOALS:
        ratio = goal.ratio(results)
        if ratio is not None:
            sign = "≤" if goal.at_most else "≥"
            verdict = "" if goal.reached(ratio) else "**short**"
            lines.append(f"| {goal.words} | {sign} {goal.limit:g} | {ratio:.2f} | {verdict} |")
    return "\n".join(lines)
