"""`db`: the framework's tables in the user's database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import DatabaseBehind
from . import options, output
from .outbox import outbox
from .session import run
from .tables import Place, of_database

if TYPE_CHECKING:
    from ..sql import Migrations, Status


@click.group()
@options.common
def db() -> None:
    """Look after the framework's tables (inbox and outbox) in your database."""


def _migrations(given: str | None, prefix: str | None, schema: str | None) -> tuple[Migrations, str]:
    place = Place.of({"database_url": given, "prefix": prefix, "schema": schema})
    from ..sql import Migrations

    return Migrations(place.url, tables=place.tables), place.shown


db.add_command(outbox)


@db.command()
@of_database
@options.as_json
@options.common
def status(database_url: str | None, prefix: str | None, schema: str | None, as_json: bool) -> None:
    """Say whether the tables are as this version needs them, exit code 1 if not; how long the oldest staged event has
    waited to be sent (`oldest_unsent` in seconds: a number to watch); and what the broker refuses."""
    place = Place.of({"database_url": database_url, "prefix": prefix, "schema": schema})
    found, oldest, refused = run(_status(place))
    shown = place.shown
    if as_json:
        tables = {"applied": list(found.applied), "pending": list(found.pending)}
        output.put_json({"database": shown, **tables, "oldest_unsent": oldest, "refused": refused})
    else:
        for name in found.applied:
            output.put(f"applied  {name}")
        for name in found.pending:
            output.put(f"pending  {name}")
        if oldest is not None:
            output.put(f"unsent   the oldest event waits for {oldest:,.0f} s")
        if refused:
            output.put(f"refused  {refused} staged message(s) by the broker: tidings db outbox ls")
    if found.pending:
        raise DatabaseBehind(f"{shown} is behind by {len(found.pending)}. Run: tidings db upgrade")


async def _status(place: Place) -> tuple[Status, float | None, int]:
    """The tables; the age of the oldest event that waits; and how many staged messages the broker does not take."""
    from ..sql import Migrations, Refusals, oldest_unsent, opened

    async with opened(place.url) as database:
        found = await Migrations(database, tables=place.tables).status()
        if found.pending:
            return found, None, 0
        oldest = await oldest_unsent(database, place.tables)
        _, refused = await Refusals(database, place.tables).look(1)
    return found, oldest, refused


@db.command()
@of_database
@options.as_json
@options.common
def upgrade(database_url: str | None, prefix: str | None, schema: str | None, as_json: bool) -> None:
    """Make or change the tables; safe to repeat, and from several processes at once."""
    migrations, shown = _migrations(database_url, prefix, schema)
    done = run(migrations.upgrade())
    if as_json:
        output.put_json({"database": shown, "applied": done})
        return
    for name in done:
        output.put(f"applied  {name}")
    output.say(f"{shown} is up to date")


@db.command()
@of_database
@click.option("--dialect", type=click.Choice(["postgresql", "sqlite"]), help="[that of the database]")
@options.common
def sql(database_url: str | None, prefix: str | None, schema: str | None, dialect: str | None) -> None:
    """Print the SQL of all tables, for who applies it by hand."""
    if dialect and not (database_url or options.settings().database_url):
        database_url = f"{dialect}:///unused"
    click.echo(_migrations(database_url, prefix, schema)[0].sql(dialect))
