"""`demo`: the reference application, whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options


class _Engine(click.Choice[str]):
    """One that the demo brings along."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return (
            f"{super().get_invalid_choice_message(value, ctx)} The demo starts a server of its own. On a Redis or NATS "
            "that runs already, in the folder `examples` of a clone: "
            "TIDINGS_URL=redis://host:6379 ../tidings up todo.handlers:bus --web todo.web:app"
        )


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Where the page is. [8080, or a free one if that is taken]")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of everything it stores.")
@click.option("--with", "parts", default="save,audit", show_default=True, help="Which handlers run: save,audit,mutate.")
@click.option("--scale", "scales", metavar="GROUP=N", multiple=True, help="N processes for a group: --scale save=3.")
@click.option("--database-url", metavar="URL", help="Another database: postgresql://… [SQLite in the data folder]")
@click.option(
    "--engine", type=_Engine(["embedded", "valkey"]), default="embedded", show_default=True, help="What carries."
)
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@click.option("--exit-after-ready", is_flag=True, help="Stop as soon as everything answers: for tests.")
@options.common
def demo(
    port: int | None,
    data: Path | None,
    parts: str,
    scales: tuple[str, ...],
    database_url: str | None,
    engine: str,
    no_open: bool,
    exit_after_ready: bool,
) -> None:
    """Run the to-do system, the reference application: broker, page, and a process per handler.

    \b
    tidings demo
    tidings demo --with save,audit,mutate --scale save=3
    tidings demo --engine valkey
    """
    from ..demo import Demo, run

    found = Demo.of(data, port, parts, scales, database_url)
    raise click.exceptions.Exit(run(found, engine=engine, open_browser=not no_open, exit_after_ready=exit_after_ready))
