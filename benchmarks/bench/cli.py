"""The command line of `benchmarks/run`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from . import report
from .benchmark import Benchmark, Case, Measured
from .plot import chart
from .runner import measure
from .suites import ALL
from .suites.samples import handled

QUICK = "QUICK figures: few messages, few rounds, possibly a busy machine. Do not quote them."


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that brokers and workers are ended too
    chosen = parse(sys.argv[1:])
    if chosen.profile:
        profile(chosen.profile, 5_000 if chosen.quick else 20_000)
        return
    if not chosen.names:
        redraw(chosen.json, chosen.plots)
        return
    environment = report.environment()
    print(f"{report.environment_text(environment)}\n\n{report.promises()}\n", flush=True)
    if chosen.quick:
        print(f"{QUICK}\n")
    for name in chosen.names:
        benchmark = ALL[name]
        measured = measure(benchmark, quick=chosen.quick, rounds=chosen.rounds, only=chosen.only)
        print(f"### {benchmark.title}\n\n{benchmark.conditions}\n\n{report.table(benchmark, measured)}\n", flush=True)
        if chosen.json:
            keep(
                chosen.json,
                name,
                {"quick": chosen.quick, "environment": environment, **report.as_json(benchmark, measured)},
            )
        if chosen.plots:
            draw(chosen.plots, benchmark, measured, environment, quick=chosen.quick)


def keep(file: Path, name: str, result: dict[str, Any]) -> None:
    """Put one benchmark's result into the file, in the place of an older one; others in it stay."""
    results = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(results | {name: result}, indent=1) + "\n")


def draw(
    folder: Path, benchmark: Benchmark, measured: list[Measured], environment: dict[str, Any], *, quick: bool
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    note = f"{environment['date']}, {environment['machine']}. {QUICK if quick else ''}"
    (folder / f"{benchmark.name}.svg").write_text(chart(benchmark, measured, note))


def redraw(file: Path, folder: Path) -> None:
    """Draw again what an earlier run has written."""
    for name, result in json.loads(file.read_text()).items():
        measured = [
            Measured(Case(one["title"], dict, one["contender"]), one["samples"], one["errors"])
            for one in result["cases"]
        ]
        draw(folder, ALL[name], measured, result["environment"], quick=result["quick"])


def profile(file: Path, count: int) -> None:
    """cProfile of the loop of one Tidings worker that handles nothing: shares, not rates (it makes calls dearer)."""
    sample = handled("tidings", count, profile=str(file.absolute()))
    print(f"{file}: {sample['worker_us']:.0f} µs per message under the profiler")


def parse(arguments: list[str]) -> argparse.Namespace:
    names = "\n".join(f"  {name:9} {benchmark.title}" for name, benchmark in ALL.items())
    parser = argparse.ArgumentParser(
        prog="benchmarks/run",
        description="Measure Tidings beside bare nats-py, FastStream, Taskiq, Celery and Dramatiq, in interleaved "
        "rounds, on brokers of its own on loopback.",
        epilog=f"benchmarks:\n{names}\n  all       every one of them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks; see below")
    parser.add_argument("--quick", action="store_true", help="few messages and rounds, to see that it works")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample there; others in it stay")
    parser.add_argument("--plots", metavar="FOLDER", type=Path, help="write an SVG per benchmark there")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of the benchmark's own number")
    parser.add_argument("--only", metavar="TEXT", help="cases whose title has this text")
    parser.add_argument("--profile", metavar="FILE", type=Path, help="instead: profile a worker that handles nothing")
    chosen = parser.parse_args(arguments)
    if "all" in chosen.names:
        chosen.names = list(ALL)
    if unknown := [name for name in chosen.names if name not in ALL]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(ALL)}, all")
    if not chosen.names and not chosen.profile and not (chosen.json and chosen.plots and chosen.json.exists()):
        parser.error("name at least one benchmark, or all; or give --json and --plots to draw an earlier run again")
    return chosen
