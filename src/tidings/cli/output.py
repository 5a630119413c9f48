"""What commands print: tables, JSON, and the text of strangers without its control characters."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from ..logs import printable

Row = Sequence[object]


def say(text: str) -> None:
    """Talk: to stderr, so that it never gets between the data."""
    click.echo(printable(text), err=True)


def put(text: str) -> None:
    """Data, one line or several: to stdout."""
    click.echo(printable(text))


def coloured(text: str, **style: Any) -> str:
    """Text in colour, unless the person has asked for none; a pipe never gets any."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def put_json(value: object) -> None:
    """Data as JSON; on a terminal indented, in a pipe one line."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def table(titles: Sequence[str], rows: Sequence[Row]) -> None:
    """Rows with aligned columns; numbers stand right. Prints the titles even where there are no rows."""
    cells = [[printable(str(value)).replace("\n", " ") for value in row] for row in rows]
    right = [all(isinstance(row[column], int | float) for row in rows) and bool(rows) for column in range(len(titles))]
    if sys.stdout.isatty() and _rich_table(titles, cells, right):
        return
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in (titles, *cells):
        aligned = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(aligned).rstrip())


def _rich_table(titles: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> bool:
    """The same with Rich; False where it is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title, is_right in zip(titles, right, strict=True):
        made.add_column(title, justify="right" if is_right else "left", overflow="fold")
    for row in cells:
        made.add_row(*map(Text, row))
    Console().print(made)
    return True


def moment(seconds: float) -> str:
    """Local time for people; with the date when it is not today's."""
    then = datetime.fromtimestamp(seconds, UTC).astimezone()
    today = then.date() == datetime.now(UTC).astimezone().date()
    return then.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def iso(seconds: float) -> str:
    """Time for programs: UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def body_fields(body: bytes) -> dict[str, Any]:
    """A body for JSON output: `body` with its value, or `text`, or, for bytes that are no text, `base64`."""
    try:
        return {"body": json.loads(body)}
    except ValueError:
        pass
    try:
        return {"text": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode("ascii")}


def brief(text: str, width: int = 100) -> str:
    """The first line of a text, cut behind a word where it is long."""
    line, _, more = text.partition("\n")
    if len(line) <= width:
        return f"{line} …" if more.strip() else line
    cut = line[:width]
    return f"{cut.rpartition(' ')[0] or cut} …"


def fit(line: str) -> str:
    """Cut to the terminal's width; in a pipe everything stays."""
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: width - 1] + "…"


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone. Refuses where nobody can answer and `--yes` was not given."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody can be asked here: say --yes if you mean it, or --dry-run.")
    if not click.confirm(printable(question), err=True):
        say("Nothing was changed.")
        raise click.exceptions.Exit(1)
