"""Give a group old events again, under the id of a replay that is part of the inbox key.

A group's transactional handler runs again for them, because to the database a replay is something new. What follows
from a replayed event has the ids that it had the first time: a transactional handler of it does nothing a second time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from . import claims
from .engine import Engine, Entry
from .errors import ConfigError
from .subjects import matches

_PAGE: Final = 200


class Span(msgspec.Struct, frozen=True):
    """Which events of a group's subjects are meant."""

    first: int = 1
    last: int | None = None
    """None: up to the last that is stored when the replay begins."""
    since: float | None = None
    """Stored then or later, seconds since 1970."""
    subject: str | None = None
    """A filter; None for all that the group listens to."""


async def entries(engine: Engine, group: str, span: Span) -> AsyncIterator[list[Entry]]:
    """Pages of the stored events that are meant, oldest first. Raises `ConfigError` for an unknown group."""
    ledger, _ = await claims.load(engine)
    claimant = ledger.groups.get(group)
    if claimant is None or claimant.removed:
        known = ", ".join(name for name, other in ledger.groups.items() if not other.removed) or "none"
        raise ConfigError(f"there is no group {group!r}; there are: {known}")
    filters = [claim.filter for claim in claimant.claims]
    last = (await engine.stats()).last
    last = last if span.last is None else min(span.last, last)
    after = span.first - 1
    while page := await engine.read(filters, after, _PAGE):
        meant = [entry for entry in page if entry.position <= last and _is_meant(entry, span)]
        if meant:
            yield meant
        after = page[-1].position
        if after >= last:
            return


def _is_meant(entry: Entry, span: Span) -> bool:
    return (span.since is None or entry.time >= span.since) and (
        span.subject is None or matches(span.subject, entry.subject)
    )


async def count(engine: Engine, group: str, span: Span) -> int:
    """How many are meant."""
    return sum([len(page) async for page in entries(engine, group, span)])


async def replay(
    engine: Engine, group: str, span: Span, id: str, told: Callable[[int], None] = lambda done: None
) -> int:
    """Give them to the group again; returns how many. What it has still to handle, and its dead letters, are left out.

    `told` is called with the number looked at so far. Cancelled or after an error some are given: again with the same
    id, a transactional handler takes none twice.
    """
    given = done = 0
    async for page in entries(engine, group, span):
        given += await engine.replay(group, page, id)
        done += len(page)
        told(done)
    return given
