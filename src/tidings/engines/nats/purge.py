"""Remove entries from Events, as far as every group is done with them.

A group's consumer has passed everything up to its acknowledgement floor. The first entry behind that which matches
what the group wants is the oldest that may still be open: nothing on the group's filters goes from there on. The
stream's leader is asked for it, because in a cluster a consumer may not know yet what the stream has.

The server removes everything that matches *below* a sequence, and knows no lower bound. Where something has to stay
(unclaimed entries, bodies that stand in the log only), subject after subject is looked at, and on a subject that has
both, entries go one by one.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import msgspec

from ...subjects import covers, overlap
from .api import JetStream
from .layout import Layout, Shape, shape_of
from .strangers import places

_SUBJECTS: Final = 500
"""Subjects that one call looks at one by one."""
_ENTRIES: Final = 10_000
"""Entries of one subject that one call removes one by one."""
_AT_ONCE: Final = 64


async def hold(js: JetStream, layout: Layout, group: str, position: int) -> None:
    """Keep an entry in the log. Comes before whatever refers to it; `tidy` takes it away again."""
    await js.store(layout.reference(group, position), b"", {"Nats-Rollup": "sub"})


class Progress(msgspec.Struct, frozen=True):
    """What a group has passed in Events."""

    shape: Shape
    floor: int


class Keep(msgspec.Struct, frozen=True):
    """What must not go."""

    groups: list[Progress]
    bodies: set[int]
    """Positions whose body a dead letter or an inbox needs."""


class Purger:
    def __init__(self, js: JetStream, layout: Layout) -> None:
        self._js = js
        self._layout = layout

    async def purge(self, filter: str, first: int, below: int) -> int:
        """See `Engine.purge`."""
        last = int((await self._js.stream(self._layout.events))["state"]["last_seq"])
        below = min(below, last + 1)
        if await self._standing(filter, first, below) is None:
            return 0
        keep = Keep(await self._groups(), await self._bodies())
        removed, clear = await self._range(filter, first, below, keep)
        if clear or ("*" not in filter and ">" not in filter):
            return removed
        subjects = list(await self._js.subjects(self._layout.events, filter))
        for subject in random.sample(subjects, min(_SUBJECTS, len(subjects))):
            removed += (await self._range(subject, first, below, keep))[0]
        return removed

    async def _range(self, filter: str, first: int, below: int, keep: Keep) -> tuple[int, bool]:
        """Remove what may go; how many, and whether all of the range went."""
        oldest = await self._standing(filter, 1, below)
        if oldest is None:
            return 0, True
        bound = await self._bound(filter, below, keep.groups)
        stay = {position for position in keep.bodies if first <= position < bound}
        if oldest >= first and not stay:
            removed = await self._js.purge(self._layout.events, filter, bound) if oldest < bound else 0
            return removed, bound == below
        if "*" in filter or ">" in filter:
            return 0, False
        return await self._one_by_one(filter, first, bound, stay), False

    async def _bound(self, filter: str, below: int, groups: list[Progress]) -> int:
        """The position of the oldest entry on the filter that a group may still have to handle, `below` at most."""
        for progress in groups:
            for held in progress.shape.claims:
                wanted = held.claim.filter
                if not overlap(wanted, filter):
                    continue
                if not held.copied:
                    below = min(below, held.claim.since)
                narrow = filter if covers(wanted, filter) else wanted
                open = await self._standing(narrow, max(1, progress.floor + 1), below)
                below = below if open is None else open
        return below

    async def _one_by_one(self, subject: str, first: int, below: int, stay: set[int]) -> int:
        gone: list[int] = []
        async for frames in self._js.pages(self._layout.events, subject, first):
            positions = [int(frame.header("Nats-Sequence")) for frame in frames]
            gone += [position for position in positions if position < below and position not in stay]
            if positions[-1] >= below or len(gone) >= _ENTRIES:
                break
        removed = 0
        for begin in range(0, min(len(gone), _ENTRIES), _AT_ONCE):
            some = gone[begin : begin + _AT_ONCE]
            there = await asyncio.gather(*(self._js.delete_message(self._layout.events, each) for each in some))
            removed += sum(there)
        return removed

    async def _standing(self, filter: str, first: int, below: int) -> int | None:
        """The first position in the range that holds something on the filter."""
        if first >= below:
            return None
        position = await self._js.standing(self._layout.events, filter, first)
        return position if position is not None and position < below else None

    async def _groups(self) -> list[Progress]:
        """Every group by name: a list of all would leave out, silently, those whose leader does not answer."""
        found = []
        for name in await self._js.consumer_names(self._layout.events):
            info: dict[str, Any] | None = await self._js.consumer(self._layout.events, name)
            shape = shape_of(info) if info is not None else None
            if info is not None and shape is not None:
                found.append(Progress(shape, int(info["ack_floor"]["stream_seq"])))
        return found

    async def _bodies(self) -> set[int]:
        marks = await self._js.subjects(self._layout.control, self._layout.reference("*", "*"))
        return {position for _, position in places(marks)}
