"""`ls`, `stats`, `explain`: what is stored, and what became of it."""

from __future__ import annotations

import uuid
from typing import Any

import click
import msgspec

from .. import claims, order
from ..engine import Engine, Entry, GroupState
from ..message import identity, place_of
from ..retention import position_at
from ..subjects import check_filter, matches
from . import options, output
from .root import NotFound
from .session import namespace, run, session
from .tail import entries

_CLOCKS_APART = 600.0  # seconds by which a publisher's clock, which is in its ids, may be wrong


@click.command()
@click.argument("filter", default=">")
@options.as_json
@options.common
def ls(filter: str, as_json: bool) -> None:
    """List the subjects with stored events, how many, and which groups want them.

    Unclaimed are events that no group has ever wanted: the first group that comes for them gets them.
    EXPIRES is when the oldest of them goes (TIDINGS_RETENTION_UNCLAIMED).
    """
    check_filter(filter)
    found = run(_subjects(filter))
    if as_json:
        output.put_json(found)
        return
    rows = [
        (s["subject"], s["count"], " ".join(s["groups"]) or "-", s["unclaimed"] or "", s["expires"] or "")
        for s in found
    ]
    output.table(("SUBJECT", "COUNT", "GROUPS", "UNCLAIMED", "EXPIRES"), rows)


async def _subjects(filter: str) -> list[dict[str, Any]]:
    async with session() as engine:
        counts = await engine.subjects(filter)
        ledger, _ = await claims.load(engine)
        unclaimed = {found.subject: found for found in await claims.unclaimed(engine, ledger)}
    living = {name: claimant for name, claimant in ledger.groups.items() if not claimant.removed}
    return [
        {
            "subject": subject,
            "count": count,
            "groups": [
                name
                for name, claimant in living.items()
                if any(matches(claim.filter, subject) for claim in claimant.claims)
            ],
            "readers": [name for name, filters in ledger.readers.items() if any(matches(f, subject) for f in filters)],
            "unclaimed": unclaimed[subject].count if subject in unclaimed else 0,
            "expires": _expiry(unclaimed.get(subject)),
        }
        for subject, count in sorted(counts.items())
    ]


def _expiry(found: claims.Unclaimed | None) -> str | None:
    kept = options.settings().retention_unclaimed
    if found is None:
        return None
    return "never" if kept is None else output.iso(found.since + kept)


@click.command()
@options.as_json
@options.common
def stats(as_json: bool) -> None:
    """Count messages, and what each group has before it."""
    found = run(_stats())
    if as_json:
        output.put_json(found)
        return
    limit = f" (the store takes {found['limit']:,})" if found["limit"] > 0 else ""
    output.put(f"{found['engine']}")
    places = f"positions {found['first']} to {found['last']}"
    output.put(f"{found['messages']} stored, {places}, {found['bytes']:,} bytes{limit}")
    columns = ("waiting", "leased", "delayed", "parked", "dead", "pulling")
    rows = [(name, *(counts[column] for column in columns)) for name, counts in found["groups"].items()]
    output.table(("GROUP", *map(str.upper, columns)), rows)


async def _stats() -> dict[str, Any]:
    async with session() as engine:
        counts, space = await engine.stats(), await engine.space()
        return {"engine": engine.description, "limit": space.limit, **msgspec.to_builtins(counts)}


@click.command()
@click.argument("message")
@options.as_json
@options.common
def explain(message: str, as_json: bool) -> None:
    """Say what each group has to do with one message, and why.

    MESSAGE is a position in the log or a message id. The states are waiting, leased, retrying, parked, done, dead, not
    wanted.

    \b
    tidings explain 17
    """
    entry, states = run(_explain(message))
    if as_json:
        output.put_json(
            {
                "position": entry.position,
                "id": _id(entry),
                "subject": entry.subject,
                "time": output.iso(entry.time),
                "groups": {name: msgspec.to_builtins(state) for name, state in states.items()},
            }
        )
        return
    output.put(f"{entry.subject}, position {entry.position}, id {_id(entry)}, stored {output.moment(entry.time)}")
    if all(state.state == "not wanted" for state in states.values()):
        output.say("no group wants it")
    rows = [(name, state.state, output.brief(state.detail)) for name, state in states.items()]
    output.table(("GROUP", "STATE", "WHY"), rows)


def _id(entry: Entry) -> str:
    return identity(entry, namespace())


async def _explain(message: str) -> tuple[Entry, dict[str, GroupState]]:
    async with session() as engine:
        entry = await find(engine, message)
        if entry is None:
            raise NotFound(f"there is no stored message {message!r}: it waits for its time, is gone, or never was")
        ledger, _ = await claims.load(engine)
        states = await claims.explain(engine, ledger, entry)
        return entry, {name: await order.explained(engine, name, state) for name, state in states.items()}


async def find(engine: Engine, message: str) -> Entry | None:
    """The entry at a position or with an id, or None. An id without a time in it means reading the whole log."""
    if message.isdecimal():
        page = await engine.read([">"], max(0, int(message) - 1), 1)
        return page[0] if page and page[0].position == int(message) else None
    here = namespace()
    if place := place_of(message, here):
        page = await engine.read([">"], place - 1, 1)
        return page[0] if page and identity(page[0], here) == message else None
    after = await position_at(engine, born - _CLOCKS_APART) if (born := _born(message)) else 0
    async for entry in entries(engine, [">"], after):
        if identity(entry, here) == message:
            return entry
    return None


def _born(id: str) -> float | None:
    """The time in a UUID of version 7."""
    try:
        value = uuid.UUID(id)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == 7 else None
