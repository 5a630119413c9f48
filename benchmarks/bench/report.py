"""The results for people (a table in Markdown) and for machines (JSON)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .benchmark import Benchmark, Measured
from .contenders import ABOUT
from .servers import nats_binary, valkey_binary


def table(benchmark: Benchmark, measured: Sequence[Measured]) -> str:
    """Medians with least and most, one line per case."""
    heads = ["", *(f"{metric.title} ({metric.unit})" for metric in benchmark.metrics)]
    lines = [f"| {' | '.join(heads)} |", f"|---{'|---:' * len(benchmark.metrics)}|"]
    for one in measured:
        cells = [words(one.spread(metric.key)) for metric in benchmark.metrics]
        failed = f" ({len(one.errors)} rounds failed)" if one.errors else ""
        lines.append(f"| {one.case.title}{failed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def words(spread: tuple[float, float, float] | None) -> str:
    if spread is None:
        return "–"
    median, least, most = map(number, spread)
    return f"{median} ({least}–{most})"


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def promises() -> str:
    """What each contender promises, with what it was set to."""
    lines = ["| | promise | settings |", "|---|---|---|"]
    lines += [f"| {about.title} | {about.promise} | {about.settings} |" for about in ABOUT.values()]
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """The machine and every version that matters."""
    packages = sorted({package for about in ABOUT.values() for package in about.packages} | {"msgspec", "pydantic"})
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {_memory()}, {platform.system()} {platform.release()}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {package: metadata.version(package) for package in packages},
        "nats-server": _answer([nats_binary(), "-v"]),
        "valkey-server": _answer([valkey_binary(), "--version"]),
        "command": " ".join(["benchmarks/run", *sys.argv[1:]]),
    }


def environment_text(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['date']}; {found['machine']}; load before the run {found['load'][0]}; {found['python']}; "
        f"{found['nats-server']}; {found['valkey-server']}; {versions}."
    )


def as_json(benchmark: Benchmark, measured: Sequence[Measured]) -> dict[str, Any]:
    return {
        "title": benchmark.title,
        "conditions": benchmark.conditions,
        "metrics": {metric.key: f"{metric.title}, {metric.unit}" for metric in benchmark.metrics},
        "cases": [
            {"title": one.case.title, "contender": one.case.contender, "samples": one.samples, "errors": one.errors}
            for one in measured
        ],
    }


def _answer(command: list[str | Path]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return " ".join(said.split()[:3])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
