"""`doctor`: what is wrong, and what mends it."""

from __future__ import annotations

import asyncio

import click
import msgspec

from .. import doctor as doctors
from . import options, output


@click.command()
@click.option("--database-url", metavar="URL", help="[TIDINGS_DATABASE_URL]")
@click.option("--port", type=click.IntRange(1, 65535), multiple=True, help="Also see whether this port is free.")
@options.as_json
@options.common
def doctor(database_url: str | None, port: tuple[int, ...], as_json: bool) -> None:
    """Look for what is wrong, and say what mends it. Starts nothing. Exit code 1 when something fails.

    Looks at the broker's program, disk and folder, at the engine, at groups without workers, dead letters and
    unclaimed events, and at the database's tables and outbox.
    """
    options.configure_logs("error")
    current = options.settings()
    database = database_url or current.database_url
    findings = asyncio.run(doctors.examine(current.url, current.namespace, database, port))
    if as_json:
        output.put_json(msgspec.to_builtins(findings))
    else:
        rows = [(finding.state, finding.subject, finding.text) for finding in findings]
        output.table(("STATE", "WHAT", "FOUND"), rows)
        for finding in findings:
            if finding.mend:
                output.put(f"\n{finding.state}: {finding.subject}\n  {finding.mend}")
    if any(finding.state == "fail" for finding in findings):
        raise click.exceptions.Exit(1)
