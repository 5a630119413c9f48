"""Runs the cases of a benchmark in rounds: each round takes all of them, beginning with another one."""

from __future__ import annotations

import re
import sys

from .benchmark import Benchmark, Measured
from .children import ChildFailed


def measure(benchmark: Benchmark, *, quick: bool, rounds: int | None, only: str | None) -> list[Measured]:
    """A case that fails is said and kept as failed; the others go on."""
    chosen = [case for case in benchmark.cases(quick) if only is None or re.search(only, case.title)]
    measured = [Measured(case) for case in chosen]
    total = rounds or (benchmark.quick_rounds if quick else benchmark.rounds)
    for number in range(total):
        shift = number * max(1, len(measured) // total)
        for one in measured[shift:] + measured[:shift]:
            print(f"  {benchmark.name} round {number + 1}/{total}: {one.case.title}", file=sys.stderr, flush=True)
            try:
                one.samples.append(one.case.sample())
            except (ChildFailed, RuntimeError, OSError) as error:
                one.errors.append(str(error))
                print(f"    failed: {error}", file=sys.stderr, flush=True)
    return measured
