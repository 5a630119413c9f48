"""`groups`: who handles what, and whether they do at the moment."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .. import claims
from ..claims import Claimant
from ..engine import Engine, GroupStats
from ..errors import Conflict
from ..subjects import check_group
from . import options, output
from .root import NotFound
from .session import run, session

_NOTHING = GroupStats(0, 0, 0, 0, 0)


@click.group()
@options.common
def groups() -> None:
    """List, pause, resume, rename, narrow and remove groups of handlers."""


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
@click.option(
    "--discard-pending", "discard", is_flag=True, help="Also if messages wait for it or are dead: they are given up."
)
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.as_json
@options.common
def rm(group: str, discard: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove a group for good. Refused while something of it is pending, unless with --discard-pending.

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
            verb = "be refused without --discard-pending" if refused else "be removed"
            return False, f"{what}; it would {verb} (dry run)"
        if refused:
            raise Conflict(f"{what}: handle or redrive them first, or give them up with --discard-pending")
        output.confirm(f"{what}. Remove the group?", yes=yes)
        await claims.change(engine, group, lease=options.settings().lease, removed=True)
    return True, f"{group} is removed"


@groups.command()
@click.argument("group")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.as_json
@options.common
def rename(group: str, name: str, yes: bool, as_json: bool) -> None:
    """Let a group go on under another name. Refused while something of it is pending, or its workers run.

    Change the name in the code at the same time: a worker that starts with the old one declares it as a new group,
    which begins with what comes then.
    """
    check_group(name)
    filters = run(_restart(group, name, drop=(), yes=yes))
    if as_json:
        output.put_json({"group": name, "was": group, "filters": filters})
    else:
        output.put(f"{group} goes on as {name}")


@groups.command()
@click.argument("group")
@click.argument("filters", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.as_json
@options.common
def narrow(group: str, filters: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Take FILTERS from a group, which a declaration never does. Refused while something of the group is pending.

    Take them out of the code first: a worker that starts with them claims them again.
    """
    left = run(_restart(group, group, drop=filters, yes=yes))
    if as_json:
        output.put_json({"group": group, "filters": left})
    else:
        output.put(f"{group} listens to {', '.join(left)}")


async def _restart(group: str, name: str, *, drop: Sequence[str], yes: bool) -> list[str]:
    async with session("admin") as engine:
        await _known(engine, group)
        ledger, _ = await claims.load(engine)
        had = list(dict.fromkeys(claim.filter for claim in ledger.groups[group].claims))
        if unknown := [filter for filter in drop if filter not in had]:
            raise NotFound(f"{group} does not listen to {unknown[0]}; it listens to {', '.join(had)}")
        left = [filter for filter in had if filter not in drop]
        if not left:
            raise Conflict(f"nothing would be left of {group}: remove it with tidings groups rm {group}")
        what = f"Rename {group} to {name}?" if name != group else f"Let {group} listen to {', '.join(left)} only?"
        output.confirm(what, yes=yes)
        await claims.restart(engine, group, lease=options.settings().lease, name=name, filters=left)
    return left


async def _known(engine: Engine, group: str) -> GroupStats:
    found = {name: counts for name, _, counts in await living(engine)}
    if group not in found:
        raise NotFound(f"there is no group {group!r}; there are: {', '.join(found) or 'none'}")
    return found[group]
