"""What ordered groups have set aside."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...engine import Entry
from .api import JetStream
from .connection import Frame
from .groups import Groups
from .headers import ORIGIN
from .layout import Layout
from .putback import CHUNK, Move, PutBack, batched
from .strangers import places
from .wire import Origin, first_body, origin_of, original


class Parking:
    def __init__(self, js: JetStream, layout: Layout, groups: Groups) -> None:
        self._js = js
        self._layout = layout
        self._groups = groups
        self._back = PutBack(js, layout)

    async def parked(self, group: str, after: int, limit: int) -> list[Entry]:
        """See `Engine.parked`. They stand in the stream as they were set aside, which is not by position."""
        there = await self._js.subjects(self._layout.control, self._layout.parked(group))
        positions = sorted(position for _, position in places(there))
        found: list[Entry] = []
        for chunk in batched([position for position in positions if position > after], CHUNK):
            moves = await self._look(group, chunk)
            found += [move.entry for move in moves]
            if len(found) >= limit:
                break
        return found[:limit]

    async def unpark(self, group: str, positions: Sequence[int]) -> int:
        """See `Engine.unpark`."""
        moved = 0
        for chunk in batched(positions, CHUNK):
            moved += await self._back.move(await self._look(group, chunk))
        return moved

    async def _look(self, group: str, positions: Sequence[int]) -> list[Move]:
        """Those that are there."""
        control = self._layout.control
        subjects = [self._layout.parked(group, position) for position in positions]
        asked = [await self._js.ask_last(control, subject) for subject in subjects]
        frames = [
            await self._js.found(question, control, subject) for subject, question in zip(subjects, asked, strict=True)
        ]
        read = (self._read(group, position, frame) for position, frame in zip(positions, frames, strict=True))
        return [move for move in await asyncio.gather(*read) if move is not None]

    async def _read(self, group: str, position: int, frame: Frame | None) -> Move | None:
        if frame is None or not frame.header(ORIGIN):
            return None  # nothing, or the tombstone of one that was put back
        origin = origin_of(frame)
        assert origin.parked is not None
        entry = original(position, origin, frame.headers, frame.body)
        if origin.reference:
            entry = await self._groups.logged(entry)
        back = Origin(entry.subject, entry.time, replay=origin.replay, dropped=origin.dropped)
        place = self._layout.parked(group, position), int(frame.header("Nats-Sequence")), origin.parked.inbox
        return Move(group, entry, back, first_body(origin, frame.body), *place, afresh=False)
