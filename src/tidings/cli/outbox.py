"""`db outbox`: staged messages that the broker does not take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ..errors import DatabaseBehind
from . import options, output
from .root import NotFound
from .session import run
from .tables import Place, of_database

if TYPE_CHECKING:
    from ..sql import Refusals

_SHOWN: Final = 50


@click.group()
@options.common
def outbox() -> None:
    """Look at messages in the outbox that the broker does not take (too large, say), retry and drop them.

    A worker tries them again once an hour; nothing else waits for them.
    """


@outbox.command()
@of_database
@click.option("--limit", type=click.IntRange(1), default=_SHOWN, show_default=True, help="So many, oldest first.")
@options.as_json
@options.common
def ls(limit: int, as_json: bool, **given: str | None) -> None:
    """List them, with what the broker said."""
    found, total = run(_look(Place.of(given), limit))
    if as_json:
        output.put_json({"total": total, "refused": msgspec.to_builtins(found)})
        return
    rows = [(one.id, one.subject, f"{one.age:,.0f} s", one.size, output.brief(one.why)) for one in found]
    output.table(("ID", "SUBJECT", "AGE", "BYTES", "THE BROKER SAID"), rows)
    if total > len(found):
        output.say(f"{total - len(found)} more: --limit {total}")


async def _look(place: Place, limit: int) -> Any:
    async with _refusals(place) as refusals:
        return await refusals.look(limit)


def _chosen(command: Any) -> Any:
    """Which ones, and whether really."""
    for option in (
        click.argument("ids", metavar="[ID]...", nargs=-1),
        click.option("--all", "everything", is_flag=True, help="All that were refused."),
        click.option("--dry-run", is_flag=True, help="Only say what would happen."),
        of_database,
        options.as_json,
        options.common,
    ):
        command = option(command)
    return command


@outbox.command()
@_chosen
def retry(ids: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool, **given: str | None) -> None:
    """Send them again now: a worker of the application does it within some seconds, `db outbox ls` tells the rest."""
    run(_act("retry", Place.of(given), _meant(ids, everything), dry_run=dry_run, yes=True, as_json=as_json))


@outbox.command()
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@_chosen
def drop(ids: tuple[str, ...], everything: bool, dry_run: bool, yes: bool, as_json: bool, **given: str | None) -> None:
    """Remove them for good; asks first. Nobody will ever handle them."""
    run(_act("drop", Place.of(given), _meant(ids, everything), dry_run=dry_run, yes=yes, as_json=as_json))


def _meant(ids: tuple[str, ...], everything: bool) -> list[str] | None:
    if bool(ids) == everything:
        raise click.UsageError("name the ids that `tidings db outbox ls` shows, or say --all")
    return None if everything else list(ids)


async def _act(what: str, place: Place, ids: list[str] | None, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    async with _refusals(place) as refusals:
        found, total = await refusals.look(1 if ids is None else 2 * len(ids), ids)
        missing = set(ids or ()) - {one.id for one in found}
        if missing or not found:
            which = f"the id {', '.join(sorted(missing))}" if missing else "that"
            raise NotFound(f"no refused message has {which}: `tidings db outbox ls` lists them")
        done = 0
        if not dry_run:
            if what == "drop":
                output.confirm(f"Drop {total} message(s) that were never sent, for good?", yes=yes)
            done = await (refusals.drop(ids) if what == "drop" else refusals.retry(ids))
    if as_json:
        output.put_json({"selected": total, "done": done})
    elif dry_run:
        output.put(f"{total} would be {'dropped' if what == 'drop' else 'sent again'} (dry run)")
    else:
        output.put(f"{done} dropped" if what == "drop" else f"{done} will be sent again by a worker within seconds")


@asynccontextmanager
async def _refusals(place: Place) -> AsyncIterator[Refusals]:
    from ..sql import Migrations, Refusals, opened

    async with opened(place.url) as database:
        if pending := (await Migrations(database, tables=place.tables).status()).pending:
            raise DatabaseBehind(f"{place.shown} is behind by {len(pending)}. Run: tidings db upgrade")
        yield Refusals(database, place.tables)
