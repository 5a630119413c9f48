"""The table of a matrix, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .matrix import Found

_HEAD = ("killed", "at", "database", "kills", "operations", "doubled", "missing", "other")


def table(found: Sequence[Found]) -> str:
    rows = [_HEAD, ("---", "---", "---", *["---:"] * 5), *map(_row, found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(found: Found) -> tuple[str, ...]:
    cell = found.cell
    counts = (found.kills, found.operations, len(found.doubled), len(found.missing), len(found.other))
    return (cell.kind, f"`{cell.failpoint}`", cell.database, *(f"{count:,}" for count in counts))
