"""`groups`: who handles what, and whether they do at the moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import click

from .. import claims
from ..claims import Claimant
from ..engine import Engine, GroupStats
from ..errors import Conflict
from ..order import standing_by, term_of
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
        output.put_json([_fields(*each) for each in found])
        return
    rows = [
        (
            name,
            " ".join(claim.filter for claim in claimant.claims),
            counts.waiting,
            counts.leased,
            counts.delayed,
            counts.parked if claimant.ordered else "-",
            counts.dead,
            counts.pulling,
            _state(claimant, workers),
        )
        for name, claimant, counts, workers in found
    ]
    columns = ("WAITING", "LEASED", "DELAYED", "PARKED", "DEAD", "PULLING", "STATE")
    output.table(("GROUP", "LISTENS TO", *columns), rows)


class Workers(NamedTuple):
    """Of an ordered group."""

    active: str
    standby: list[str]


def _state(claimant: Claimant, workers: Workers) -> str:
    words = ["paused"] if claimant.paused else []
    if claimant.ordered:
        words.append(f"ordered: active {workers.active or 'nobody'}, standby {' '.join(workers.standby) or 'nobody'}")
    return ", ".join(words)


async def _list() -> list[tuple[str, Claimant, GroupStats, Workers]]:
    async with session() as engine:
        found = await living(engine)
        return [(name, claimant, counts, await _workers(engine, name, claimant)) for name, claimant, counts in found]


async def _workers(engine: Engine, group: str, claimant: Claimant) -> Workers:
    term = await term_of(engine, group) if claimant.ordered else None
    if term is None:
        return Workers("", [])
    standby = await standing_by(engine, group, time.time())
    return Workers(term.holder, [name for name in standby if name != term.holder])


async def living(engine: Engine) -> list[tuple[str, Claimant, GroupStats]]:
    """The groups that were not removed, with their counts."""
    ledger, _ = await claims.load(engine)
    stats = await engine.stats()
    return [
        (name, claimant, stats.groups.get(name, _NOTHING))
        for name, claimant in ledger.groups.items()
        if not claimant.removed
    ]


def _fields(name: str, claimant: Claimant, counts: GroupStats, workers: Workers) -> dict[str, object]:
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
        "parked": counts.parked,
        "ordered": claimant.ordered,
        "active": workers.active or None,
        "standby": workers.standby,
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
        await known(engine, group)
        await claims.change(engine, group, paused=paused)


@groups.command()
@click.argument("group")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.as_json
@options.common
def unorder(group: str, yes: bool, as_json: bool) -> None:
    """Give up the order of a group, after order=True was taken out of the code. What is parked goes back to it.

    Refused while a worker of the group is active: stop them first.
    """
    count = run(_unorder(group, yes=yes))
    if as_json:
        output.put_json({"group": group, "released": count})
    else:
        output.put(f"{group} keeps no order any more; {count} parked message(s) are back")


async def _unorder(group: str, *, yes: bool) -> int:
    async with session("admin") as engine:
        counts = await known(engine, group)
        term = await term_of(engine, group)
        if term is not None and term.holder and (counts.pulling or counts.leased):
            raise Conflict(f"{group} has an active worker, {term.holder}: stop its workers first")
        output.confirm(f"Give up the order of {group}? {counts.parked} parked message(s) go back to it.", yes=yes)
        await claims.change(engine, group, ordered=False)
        count = 0
        while entries := await engine.parked(group):
            count += await engine.unpark(group, [entry.position for entry in entries])
    return count


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
        counts = await known(engine, group)
        what = f"{group} has {counts.pending} message(s) to handle, {counts.dead} dead letter(s)"
        what += f", {counts.pulling} worker(s)"
        refused = bool(counts.pending + counts.dead) and not discard
        if dry_run:
            verb = "be refused without --discard-pending" if refused else "be removed"
            return False, f"{what}; it would {verb} (dry run)"
        if refused:
            raise Conflict(f"{what}: handle or redrive them first, or give them up with --discard-pending")
        output.confirm(f"{what}. Remove the group?", yes=yes)
        await claims.change(engine, group, removed=True)
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
        await known(engine, group)
        ledger, _ = await claims.load(engine)
        had = list(dict.fromkeys(claim.filter for claim in ledger.groups[group].claims))
        if unknown := [filter for filter in drop if filter not in had]:
            raise NotFound(f"{group} does not listen to {unknown[0]}; it listens to {', '.join(had)}")
        left = [filter for filter in had if filter not in drop]
        if not left:
            raise Conflict(f"nothing would be left of {group}: remove it with tidings groups rm {group}")
        what = f"Rename {group} to {name}?" if name != group else f"Let {group} listen to {', '.join(left)} only?"
        output.confirm(what, yes=yes)
        await claims.restart(engine, group, name=name, filters=left)
    return left


async def known(engine: Engine, group: str) -> GroupStats:
    """Its counts; raises `NotFound` with the names that there are."""
    found = {name: counts for name, _, counts in await living(engine)}
    if group not in found:
        raise NotFound(f"there is no group {group!r}; there are: {', '.join(found) or 'none'}")
    return found[group]
