"""The command line of `benchmarks/run`."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

from . import goals, report
from .benchmark import Benchmark, Case, Measured
from .contenders import ABOUT
from .plot import chart
from .runner import measure
from .suites import ALL
from .suites.samples import handled

QUICK = "QUICK figures: few messages, few rounds, possibly a busy machine. Do not quote them."


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that brokers and workers are ended too
    chosen = parse(sys.argv[1:])
    if chosen.profile:
        profile(chosen.profile, chosen.only or "Tidings", 5_000 if chosen.quick else 20_000)
        return
    if not chosen.names:
        again(chosen.json, chosen.plots, chosen.page)
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


def again(file: Path, plots: Path | None, page: Path | None) -> None:
    """Draw and write again what earlier runs have measured."""
    kept = json.loads(file.read_text())
    results: dict[str, list[Measured]] = {}
    for name in (name for name in ALL if name in kept):
        result = kept[name]
        results[name] = [
            Measured(Case(one["title"], dict, one["contender"]), one["samples"], one["errors"])
            for one in result["cases"]
        ]
        if plots:
            draw(plots, ALL[name], results[name], result["environment"], quick=result["quick"])
    if page:
        parts = [
            f"# Results\n\nWritten by `benchmarks/run --json {file.name} --page {page.name}`.\n\n{goals.table(results)}"
        ]
        for name, measured in results.items():
            parts.append(section(ALL[name], measured, kept[name]))
        page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def section(benchmark: Benchmark, measured: list[Measured], result: dict[str, Any]) -> str:
    """One benchmark on the page."""
    quick = f"\n\n{QUICK}" if result["quick"] else ""
    return (
        f"## {benchmark.title}\n\n{benchmark.conditions}{quick}\n\n{report.table(benchmark, measured)}\n\n"
        f"![{benchmark.title}]({benchmark.name}.svg)\n\n{report.environment_text(result['environment'])}"
    )


def profile(file: Path, title: str, count: int) -> None:
    """cProfile of the loop of a worker that handles nothing: shares, not rates (it makes calls dearer)."""
    contender = next(name for name, about in ABOUT.items() if about.title == title)
    sample = handled(contender, count, profile=str(file.absolute()))
    print(f"{file}: {sample['worker_us']:.0f} µs per message under the profiler")


def pattern(text: str) -> str:
    """A regular expression, or the error that argparse tells."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


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
    parser.add_argument(
        "--page", metavar="FILE", type=Path, help="with --json alone: write all of it there, as Markdown"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of the benchmark's own number")
    parser.add_argument(
        "--only", metavar="PATTERN", type=pattern, help="cases with this in their title: 'Tidings$|nats-py'"
    )
    parser.add_argument(
        "--profile",
        metavar="FILE",
        type=Path,
        help="instead: profile a worker that handles nothing; --only with a whole title says whose",
    )
    chosen = parser.parse_args(arguments)
    if "all" in chosen.names:
        chosen.names = list(ALL)
    if unknown := [name for name in chosen.names if name not in ALL]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(ALL)}, all")
    if chosen.profile and chosen.only not in (None, *(about.title for about in ABOUT.values())):
        parser.error(
            f"nobody is called {chosen.only!r}; there are: {'; '.join(about.title for about in ABOUT.values())}"
        )
    again = chosen.json and chosen.json.exists() and (chosen.plots or chosen.page)
    if not chosen.names and not chosen.profile and not again:
        parser.error("name at least one benchmark, or all; or --json with --plots or --page for an earlier run")
    return chosen
