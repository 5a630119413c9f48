"""What has become of one publish: asked of the engine and the ledger, from any process.

A message and its follow-ups are a *chain*: all carry the id of the message that began it as correlation, and the id of
the one they follow from as causation. Which groups can emit an event is in the ledger, so it is known when none is
left that still could.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal

import msgspec

from .. import claims
from ..engine import DeadLetter, Engine, Entry, GroupState
from ..message import CAUSATION, born, decode_header, identity, place_of
from ..subjects import matches, overlap
from .chains import Chains, between
from .failures import Failed, of_letter

_LATE: Final = 3600.0
"""Seconds that a message may be stored after its id was made, or clocks may differ, for `find` to find it by its id."""
_FIRST_PAGE: Final = 64
_PAGE: Final = 1000


class Progress(msgspec.Struct, frozen=True):
    """How far the handling of a message is, with a view to some events that may come of it."""

    state: Literal["working", "retrying", "dead", "done"]
    """`done`: every group that could emit the events has handled it. `dead`: none of them is left, and at least one
    has given up. `retrying`: one has failed and will try again."""
    failures: tuple[Failed, ...] = ()
    """Of the groups that have failed for good."""
    letters: tuple[DeadLetter, ...] = ()


def leading(ledger: claims.Ledger, targets: Sequence[str]) -> dict[str, claims.Claimant]:
    """The groups from which events on the target filters can come, directly or by way of other groups."""
    found: dict[str, claims.Claimant] = {}
    wanted = list(targets)
    while True:
        more = {
            name: claimant
            for name, claimant in ledger.groups.items()
            if name not in found
            and not claimant.removed
            and any(overlap(emitted, filter) for emitted in claimant.emits for filter in wanted)
        }
        if not more:
            return found
        found |= more
        wanted += [claim.filter for claimant in more.values() for claim in claimant.claims]


async def find(engine: Engine, id: str, namespace: str, position: int = 0) -> Entry | None:
    """The message with this id. Known to stand at `position` it takes one read; else the log is walked backwards to
    the time at which the id was made, or to its beginning for an id that does not say."""
    if position := position or place_of(id, namespace):
        page = await engine.read([">"], position - 1, 1)
        same = page and page[0].position == position and identity(page[0], namespace) == id
        return page[0] if same else None
    since = born(id) - _LATE
    async for piece in _backwards(engine):
        ids = [identity(entry, namespace) for entry in piece]
        if id in ids:
            return piece[ids.index(id)]
        times = [time for each in ids if (time := born(each))]
        if times and max(times) < since:
            break
    return None


async def _backwards(engine: Engine) -> AsyncIterator[list[Entry]]:
    """The log from its end, in growing pieces."""
    stats = await engine.stats()
    high, size = stats.last, _FIRST_PAGE
    while high >= stats.first:
        low = max(0, high - size)
        piece = [entry async for entry in between(engine, [">"], low, high)]
        yield piece
        high, size = low, min(4 * size, _PAGE) if piece else 4 * size


async def look(chains: Chains, root: Entry, targets: Sequence[str]) -> Progress:
    """What has become of a message, with a view to events on the target filters."""
    ledger, _ = await claims.load(chains.engine)
    groups = leading(ledger, targets)
    chain = await chains.of(root, _on_the_way(groups, targets)).read()
    judge = _Judge(chains.engine, chains.namespace, groups, chain)
    hope = await judge.hope(root)
    if hope:
        return Progress(hope)
    failures = tuple(of_letter(letter, chains.namespace) for letter in judge.letters)
    return Progress("dead" if failures else "working", failures, tuple(judge.letters))


def _on_the_way(groups: dict[str, claims.Claimant], targets: Sequence[str]) -> list[str]:
    """The subjects of those messages that another group may still make one of the target events of."""
    return sorted(
        {
            emitted
            for claimant in groups.values()
            for emitted in claimant.emits
            if not any(matches(target, emitted) for target in targets)
            and any(matches(claim.filter, emitted) for other in groups.values() for claim in other.claims)
        }
    )


Hope = Literal["", "working", "retrying", "done"]


class _Judge:
    """Whether the events may still come, and the dead letters found on the way."""

    def __init__(self, engine: Engine, namespace: str, groups: dict[str, claims.Claimant], chain: list[Entry]) -> None:
        self._engine = engine
        self._namespace = namespace
        self._groups = groups
        self._chain = chain
        self.letters: list[DeadLetter] = []

    async def hope(self, entry: Entry) -> Hope:
        """How an event may still come of the entry; empty when it cannot."""
        hopes: set[Hope] = set()
        for group, state in (await self._engine.states(entry)).items():
            if group in self._groups and self._groups[group].claims:
                hopes.add(await self._hope_of(entry, group, state))
        for best in ("retrying", "working", "done"):
            if best in hopes:
                return best
        return ""

    async def _hope_of(self, entry: Entry, group: str, state: GroupState) -> Hope:
        if state.state == "not wanted":
            return ""
        if state.state == "dead":
            letters = await self._engine.dead_letters(group, entry.position - 1, 1)
            self.letters += [letter for letter in letters if letter.entry.position == entry.position]
            return ""
        if state.state == "retrying":
            return "retrying"
        if state.state != "done":
            return "working"
        id, emits = identity(entry, self._namespace), self._groups[group].emits
        children = [
            child
            for child in self._chain
            if decode_header(child.headers.get(CAUSATION, "")) == id and child.subject in emits
        ]
        # Without a follow-up that leads on it is done: the event is there, on its way, or was not needed.
        if not children:
            return "done"
        hopes = [await self.hope(child) for child in children]
        return next((hope for hope in hopes if hope), "")
