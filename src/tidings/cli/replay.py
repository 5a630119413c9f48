"""`tidings replay`: a group handles old events again."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from .. import replay as replaying
from ..errors import ConfigError, TidingsError
from ..message import new_id
from ..settings import duration
from ..subjects import check_filter
from . import options, output
from .groups import known
from .session import run, session


@click.command()
@click.argument("group")
@click.option("--since", metavar="TIME", help="Stored then or later: 2026-05-01T12:00Z, or so long ago: 2h, 7d.")
@click.option("--from", "first", type=click.IntRange(1), metavar="SEQ", help="From this position on.")
@click.option("--to", "last", type=click.IntRange(1), metavar="SEQ", help="Up to this position, included.")
@click.option("--subject", metavar="FILTER", help="Only these of the group's subjects.")
@click.option("--id", "id", help="Go on with a replay that was interrupted.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.as_json
@options.common
def replay(group: str, since: str | None, as_json: bool, dry_run: bool, yes: bool, **given: str | int | None) -> None:
    """Give GROUP old events again, and no other group. Say which: --since, --from, --to.

    Handlers see `message.replay`; those with a transaction run again, although they have handled the events before.
    What the group has still to handle, and its dead letters, are left out.

    \b
    tidings replay audit --since 2h --dry-run
    tidings replay audit --from 1 --subject events.todo.newitem
    """
    span = _span(since, given)
    counted, done, id = run(_replay(group, span, str(given["id"] or new_id()), dry_run=dry_run, yes=yes))
    if as_json:
        output.put_json({"group": group, "found": counted, "replayed": done, "id": None if dry_run else id})
    elif dry_run:
        output.put(f"{counted} event(s) would be given to {group} again (dry run)")
    else:
        rest = f", {counted - done} left out: still to handle, or dead letters" if done < counted else ""
        output.put(f"{done} event(s) given to {group} again{rest} (replay {id})")


def _span(since: str | None, given: dict[str, str | int | None]) -> replaying.Span:
    first, last, subject = given["first"], given["last"], given["subject"]
    if since is None and first is None and last is None:
        raise click.UsageError("say which events: --since, --from or --to (--from 1 for everything)")
    return replaying.Span(
        first=int(first or 1),
        last=None if last is None else int(last),
        since=None if since is None else _moment(since),
        subject=None if subject is None else check_filter(str(subject)),
    )


def _moment(text: str) -> float:
    now = datetime.now(UTC)
    try:
        return now.timestamp() - duration(text)
    except ConfigError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"--since {text!r}: write 2026-05-01T12:00Z, or how long ago: 30m, 2h, 7d") from None
    if moment.tzinfo is None:
        raise click.UsageError(f"--since {text!r} has no time zone: write {text}Z or {text}+02:00")
    return moment.timestamp()


async def _replay(group: str, span: replaying.Span, id: str, *, dry_run: bool, yes: bool) -> tuple[int, int, str]:
    async with session() as engine:
        await known(engine, group)
        counted = await replaying.count(engine, group, span)
        if dry_run or not counted:
            return counted, 0, id
        output.confirm(f"{counted} event(s) will be handled by {group} again. Go on?", yes=yes)
        try:
            return counted, await replaying.replay(engine, group, span, id), id
        except TidingsError:
            output.say(f"interrupted: `tidings replay {group} … --id {id}` goes on with it")
            raise
