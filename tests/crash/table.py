"""The table of a matrix, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .matrix import CELLS, Cell, Found

_HEAD = ("killed", "at", "database", "kills", "operations", "doubled", "missing", "other")


def table(found: Sequence[Found]) -> str:
    rows = [_HEAD, ("---", "---", "---", *["---:"] * 5), *map(_row, found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(found: Found) -> tuple[str, ...]:
    cell = found.cell
    counts = (found.kills, found.operations, len(found.doubled), len(found.missing), len(found.other))
    return (cell.kind, f"`{cell.failpoint}`", cell.database, *(f"{count:,}" for count in counts))


def sound_in(page: str, kills: int) -> list[Found]:
    """The cells that a page with such a table shows as sound after so many kills."""
    cells: dict[tuple[str, ...], Cell] = {(cell.kind, f"`{cell.failpoint}`", cell.database): cell for cell in CELLS}
    found = []
    for line in page.splitlines():
        words = tuple(word.strip() for word in line.strip("|").split("|"))
        if words[:3] in cells and words[3] == f"{kills:,}" and words[5:] == ("0", "0", "0"):
            found.append(Found(cells[words[:3]], kills, int(words[4].replace(",", ""))))
    return found
