"""Inside a worker: counts what its handler sees, and reports when the last message was seen."""

from __future__ import annotations

import cProfile
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path

from . import profiling
from .job import Job, now
from .proc import cpu_seconds, memory_mb


class Meter:
    """Called by the handler for each message, from whatever thread it runs in.

    The first message says that the worker is up; the measured part begins after a tenth of the messages, so that
    imports and connecting are not in it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._numbers = itertools.count(1)
        self._mark = max(1, job.count // 10)
        self._began = (0.0, 0.0, 0.0)
        self._tenths: list[tuple[float, float]] = []
        """Processor time and memory at the end of each tenth."""
        self._late: list[float] = []
        self._profiler = cProfile.Profile() if job.profile else None

    def __call__(self, sent: float) -> None:
        number = next(self._numbers)
        if sent:
            self._late.append(now() - sent)
        if number == 1:
            tell({"first": True})
        if number % self._mark == 0 and number <= self._job.count:
            self._tenths.append((cpu_seconds(os.getpid()), memory_mb(os.getpid())[0]))
        if number == self._mark:
            self._began = self._clocks()
            if self._profiler:
                self._profiler.enable()
        elif number == self._job.count:
            self._finish()

    def _clocks(self) -> tuple[float, float, float]:
        return now(), cpu_seconds(os.getpid()), cpu_seconds(self._job.broker_pid)

    def _finish(self) -> None:
        clocks = self._clocks()
        if self._profiler:
            self._profiler.disable()
            profiling.write(self._profiler, Path(self._job.profile))
        wall, worker, broker = (end - begin for end, begin in zip(clocks, self._began, strict=True))
        messages = self._job.count - self._mark
        resident, peak = memory_mb(os.getpid())
        result = {
            "rate": messages / wall,
            "worker_us": worker / messages * 1e6,
            "broker_us": broker / messages * 1e6,
            "cpu_us": (worker + broker) / messages * 1e6,
            "rss_mb": resident,
            "peak_mb": peak,
        }
        if len(self._tenths) == 10:
            result |= self._growth()
        if self._late:
            late = sorted(self._late)
            result |= {f"p{p}_ms": percentile(late, p / 100) * 1e3 for p in (50, 99)}
        tell(result)

    def _growth(self) -> dict[str, float]:
        """The second tenth beside the last one: the first has the imports in it."""
        cpu, memory = zip(*self._tenths, strict=True)
        return {
            "first_us": (cpu[1] - cpu[0]) / self._mark * 1e6,
            "last_us": (cpu[9] - cpu[8]) / self._mark * 1e6,
            "grown_mb": memory[9] - memory[0],
        }


def percentile(ordered: list[float], part: float) -> float:
    """The value below which this part of them lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def tell(what: Mapping[str, float]) -> None:
    """One line of JSON for the process that measures."""
    print(json.dumps(what), flush=True)
