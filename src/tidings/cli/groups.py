"""`groups`: who handles what, and whether they do at the moment."""

from __future__ import annotations

import click

from .. import claims
from ..claims import Claimant
from ..engine import Engine, GroupStats
from ..errors import Conflict
from . import options, output
from .root import NotFound
from .session import run, session

_NOTHING = GroupStats(0, 0, 0, 0, 0)


@click.group()
@options.common
def groups() -> None:
    """List, pause, resume and remove groups of handlers."""


@groups.command()
@options.as_json
@options.common
def ls(as_json: bool) -> None:
    """List the groups: what they listen to and what they have before them."""
    found = run(_list())
    if as_json:
        output.put_json([_fields(name, claimant, counts) for name, claimant, counts in found])
        return
    rows = [
        (
            name,
            " ".join(claim.filter for claim in claimant.claims),
            counts.waiting,
            counts.leased,
            counts.delayed,
            counts.dead,
            counts.pulling,
            "paused" if claimant.paused else "",
        )
        for name, claimant, counts in found
    ]
    output.table(("GROUP", "LISTENS TO", "WAITING", "LEASED", "DELAYED", "DEAD", "PULLING", "STATE"), rows)


async def _list() -> list[tuple[str, Claimant, GroupStats]]:
    async with session() as engine:
        return await living(engine)


async def living(engine: Engine) -> list[tuple[str, Claimant, GroupStats]]:
    """The groups that were not removed, with their counts."""
    ledger, _ = await claims.load(engine)
    stats = await engine.stats()
    return [
        (name, claimant, stats.groups.get(name, _NOTHING))
        for name, claimant in ledger.groups.items()
        if not claimant.removed
    ]


def _fields(name: str, claimant: Claimant, counts: GroupStats) -> dict[str, object]:
    return {
        "group": name,
        "paused": claimant.paused,
        "filters": [claim.filter for claim in claimant.claims],
        "since": [claim.since for claim in claimant.claims],
        "emits": list(claimant.emits),
        "waiting": counts.waiting,
        "leased": counts.leased,
        "delayed": counts.delayed,
        "dead": counts.dead,
        "pulling": counts.pulling,
    }


@groups.command()
@click.argument("group")
@options.as_json
@options.common
def pause(group: str, as_json: bool) -> None:
    """Hand a group nothing more until it is resumed; its messages wait. Running handlers finish."""
    run(_change(group, paused=True))
    text = f"{group} is paused: its messages wait. `tidings groups resume {group}` goes on"
    output.put_json({"group": group, "paused": True}) if as_json else output.put(text)


@groups.command()
@click.argument("group")
@options.as_json
@options.common
def resume(group: str, as_json: bool) -> None:
    """Go on with a paused group."""
    run(_change(group, paused=False))
    output.put_json({"group": group, "paused": False}) if as_json else output.put(f"{group} goes on")


async def _change(group: str, *, paused: bool) -> None:
    async with session() as engine:
        await _known(engine, group)
        await claims.change(engine, group, lease=options.settings().lease, paused=paused)


@groups.command()
@click.argument("group")
@click.option("--discard", is_flag=True, help="Also if messages wait for it or are dead: the group gives them up.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.as_json
@options.common
def rm(group: str, discard: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove a group for good. Refused while something of it is pending, unless with --discard.

    Stop its workers first: one that still runs, or starts later, declares the group again.
    """
    removed, text = run(_remove(group, discard=discard, dry_run=dry_run, yes=yes))
    output.put_json({"group": group, "removed": removed}) if as_json else output.put(text)


async def _remove(group: str, *, discard: bool, dry_run: bool, yes: bool) -> tuple[bool, str]:
    async with session("admin") as engine:
        counts = await _known(engine, group)
        pending = counts.waiting + counts.leased + counts.delayed
        what = f"{group} has {pending} message(s) to handle, {counts.dead} dead letter(s), {counts.pulling} worker(s)"
        refused = bool(pending + counts.dead) and not discard
        if dry_run:
            verb = "be refused without --discard" if refused else "be removed"
            return False, f"{what}; it would {verb} (dry run)"
        if refused:
            raise Conflict(f"{what}: handle or redrive them first, or give them up with --discard")
        output.confirm(f"{what}. Remove the group?", yes=yes)
        await claims.change(engine, group, lease=options.settings().lease, removed=True)
    return True, f"{group} is removed"


async def _known(engine: Engine, group: str) -> GroupStats:
    found = {name: counts for name, _, counts in await living(engine)}
    if group not in found:
        raise NotFound(f"there is no group {group!r}; there are: {', '.join(found) or 'none'}")
    return found[group]
