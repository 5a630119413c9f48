"""`db`: the framework's tables in the user's database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import DatabaseBehind
from . import options, output
from .session import run

if TYPE_CHECKING:
    from ..sql import Migrations

F = TypeVar("F", bound=Callable[..., Any])


def _database(command: F) -> F:
    """The options that name a database and its tables."""
    for option in (
        click.option("--schema", metavar="NAME", help="of the tables, on PostgreSQL [TIDINGS_TABLES_SCHEMA]"),
        click.option("--prefix", metavar="WORD", help="of the tables' names [TIDINGS_TABLES_PREFIX, tidings_]"),
        click.option("--database-url", metavar="URL", help="sqlite:///FILE, postgresql://… [TIDINGS_DATABASE_URL]"),
    ):
        command = option(command)
    return command


@click.group()
@options.common
def db() -> None:
    """Look after the framework's tables (inbox and outbox) in your database."""


def _migrations(given: str | None, prefix: str | None, schema: str | None) -> tuple[Migrations, str]:
    settings = options.settings()
    url = given or settings.database_url
    if not url:
        raise click.UsageError("which database? Give --database-url or set TIDINGS_DATABASE_URL")
    from ..sql import Migrations, Tables, masked

    tables = Tables(prefix or settings.tables_prefix, schema or settings.tables_schema)
    return Migrations(url, tables=tables), masked(url)


@db.command()
@_database
@options.as_json
@options.common
def status(database_url: str | None, prefix: str | None, schema: str | None, as_json: bool) -> None:
    """Say whether the tables are as this version needs them; exit code 1 if not."""
    migrations, shown = _migrations(database_url, prefix, schema)
    found = run(migrations.status())
    if as_json:
        output.put_json({"database": shown, "applied": list(found.applied), "pending": list(found.pending)})
    else:
        for name in found.applied:
            output.put(f"applied  {name}")
        for name in found.pending:
            output.put(f"pending  {name}")
    if found.pending:
        raise DatabaseBehind(f"{shown} is behind by {len(found.pending)}. Run: tidings db upgrade")


@db.command()
@_database
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
@_database
@click.option("--dialect", type=click.Choice(["postgresql", "sqlite"]), help="[that of the database]")
@options.common
def sql(database_url: str | None, prefix: str | None, schema: str | None, dialect: str | None) -> None:
    """Print the SQL of all tables, for who applies it by hand."""
    if dialect and not (database_url or options.settings().database_url):
        database_url = f"{dialect}:///unused"
    click.echo(_migrations(database_url, prefix, schema)[0].sql(dialect))
