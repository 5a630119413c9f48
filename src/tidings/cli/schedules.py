"""`schedules`: what runs when, and which single messages wait for their time."""

from __future__ import annotations

import time
from typing import Final

import click
import msgspec

from .. import claims, schedule
from ..claims import Claimant
from ..engine import Engine, GroupStats, Outgoing
from ..errors import Conflict
from . import options, output
from .groups import living
from .root import NotFound
from .session import run, session

_LATE: Final = 60.0


class Listed(msgspec.Struct, frozen=True):
    """A schedule as a person sees it."""

    name: str
    progress: schedule.Progress | None
    claimant: Claimant
    counts: GroupStats

    @property
    def due(self) -> float | None:
        return self.progress.due if self.progress else None

    @property
    def state(self) -> str:
        if self.claimant.paused:
            return "paused"
        if self.due is None:
            return "not begun: no worker has run it yet"
        if self.due < time.time() - _LATE:
            return "overdue: no worker keeps it"
        return ""


@click.group()
@options.common
def schedules() -> None:
    """List and remove schedules, cancel delayed messages.

    A schedule is paused and resumed as the group that it is: `tidings groups pause NAME`.
    """


@schedules.command()
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Delayed messages to show.")
@options.as_json
@options.common
def ls(limit: int, as_json: bool) -> None:
    """List the schedules, and then the single messages that were published with a delay.

    A schedule that no running worker has in its code (any more) is overdue: remove it, or start a worker.
    """
    found, waiting = run(_list(limit))
    if as_json:
        output.put_json({"schedules": [_fields(one) for one in found], "delayed": [_delayed(one) for one in waiting]})
        return
    rows = [
        (
            one.name,
            str(one.progress.timing) if one.progress else "",
            output.moment(one.due) if one.due else "",
            output.moment(one.progress.last) if one.progress and one.progress.last else "",
            one.counts.waiting + one.counts.leased + one.counts.delayed,
            one.counts.dead,
            one.state,
        )
        for one in found
    ]
    output.table(("SCHEDULE", "WHEN", "NEXT", "LAST", "WAITING", "DEAD", "STATE"), rows)
    if waiting:
        output.put("")
        delayed = [(one.subject, one.id, output.moment(one.not_before or 0.0)) for one in waiting]
        output.table(("DELAYED", "ID", "DUE"), delayed)


async def _list(limit: int) -> tuple[list[Listed], list[Outgoing]]:
    async with session() as engine:
        waiting = await engine.delayed(limit)
        return await _schedules(engine), sorted(waiting, key=lambda message: message.not_before or 0.0)


async def _schedules(engine: Engine) -> list[Listed]:
    return [
        Listed(name, (await schedule.load(engine, name))[0], claimant, counts)
        for name, claimant, counts in await living(engine)
        if schedule.is_schedule(claimant)
    ]


def _fields(one: Listed) -> dict[str, object]:
    timing, last = (one.progress.timing, one.progress.last) if one.progress else (None, None)
    return {
        "schedule": one.name,
        "every": timing.every or None if timing else None,
        "cron": timing.cron or None if timing else None,
        "zone": timing.zone if timing and timing.cron else None,
        "next": output.iso(one.due) if one.due else None,
        "last": output.iso(last) if last else None,
        "waiting": one.counts.waiting + one.counts.leased + one.counts.delayed,
        "dead": one.counts.dead,
        "state": one.state,
    }


def _delayed(message: Outgoing) -> dict[str, object]:
    due = output.iso(message.not_before or 0.0)
    return {"subject": message.subject, "id": message.id, "due": due, **output.body_fields(message.body)}


@schedules.command()
@click.argument("name")
@click.option("--discard", is_flag=True, help="Also if runs of it wait or are dead letters: they are given up.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.as_json
@options.common
def rm(name: str, discard: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove a schedule: nothing falls due any more, at once and in every process.

    Take it out of the code as well: a worker that starts with it later begins it anew.
    """
    removed, text = run(_remove(name, discard=discard, dry_run=dry_run, yes=yes))
    output.put_json({"schedule": name, "removed": removed}) if as_json else output.put(text)


async def _remove(name: str, *, discard: bool, dry_run: bool, yes: bool) -> tuple[bool, str]:
    async with session("admin") as engine:
        found = {one.name: one for one in await _schedules(engine)}
        if name not in found:
            raise NotFound(f"there is no schedule {name!r}; there are: {', '.join(found) or 'none'}")
        counts = found[name].counts
        waiting = counts.waiting + counts.leased + counts.delayed
        what = f"{name} has {waiting} run(s) that wait or are under way, {counts.dead} dead letter(s)"
        refused = bool(waiting + counts.dead) and not discard
        if dry_run:
            verb = "be refused without --discard" if refused else "be removed"
            return False, f"{what}; it would {verb} (dry run)"
        if refused:
            raise Conflict(f"{what}: let them finish or redrive them first, or give them up with --discard")
        output.confirm(f"{what}. Remove the schedule?", yes=yes)
        await schedule.end(engine, name)
        await claims.change(engine, name, removed=True)
    return True, f"{name} is removed"


@schedules.command()
@click.argument("subject")
@click.argument("id")
@options.as_json
@options.common
def cancel(subject: str, id: str, as_json: bool) -> None:
    """Take back a message that was published with a delay, by its subject and id."""
    run(_cancel(subject, id))
    text = f"{id} is cancelled"
    output.put_json({"subject": subject, "id": id, "cancelled": True}) if as_json else output.put(text)


async def _cancel(subject: str, id: str) -> None:
    async with session() as engine:
        if not await engine.cancel(subject, id):
            raise NotFound(f"no message {id!r} waits on {subject}: it was handed out, or cancelled before")
