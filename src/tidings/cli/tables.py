"""Which database a command is about, and what our tables are called there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from . import options

if TYPE_CHECKING:
    from ..sql import Tables

F = TypeVar("F", bound=Callable[..., Any])


def of_database(command: F) -> F:
    """The options that name a database and its tables."""
    for option in (
        click.option("--schema", metavar="NAME", help="of the tables, on PostgreSQL [TIDINGS_TABLES_SCHEMA]"),
        click.option("--prefix", metavar="WORD", help="of the tables' names [TIDINGS_TABLES_PREFIX, tidings_]"),
        click.option("--database-url", metavar="URL", help="sqlite:///FILE, postgresql://… [TIDINGS_DATABASE_URL]"),
    ):
        command = option(command)
    return command


class Place(msgspec.Struct, frozen=True):
    """A database and the names of our tables in it."""

    url: str
    tables: Any

    @classmethod
    def of(cls, given: Mapping[str, str | None]) -> Place:
        """What the options say, else the settings."""
        settings = options.settings()
        url = given["database_url"] or settings.database_url
        if not url:
            raise click.UsageError("which database? Give --database-url or set TIDINGS_DATABASE_URL")
        from ..sql import Tables

        tables: Tables = Tables(given["prefix"] or settings.tables_prefix, given["schema"] or settings.tables_schema)
        return cls(url, tables)

    @property
    def shown(self) -> str:
        """The URL without password."""
        from ..sql import masked

        return masked(self.url)
