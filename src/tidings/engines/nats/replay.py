"""Give a group again what it is done with: copies in its inbox, which say under which replay they came."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...engine import Entry
from ...errors import Conflict
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect
from .census import Census
from .connection import Frame
from .headers import ORIGIN
from .layout import Layout
from .purge import hold
from .wire import Origin, copied, origin_of, refers

_AT_ONCE = 64


class Replayer:
    def __init__(self, js: JetStream, layout: Layout, census: Census) -> None:
        self._js = js
        self._layout = layout
        self._census = census

    async def replay(self, group: str, entries: Sequence[Entry], id: str) -> int:
        """See `Engine.replay`."""
        given = 0
        for begin in range(0, len(entries), _AT_ONCE):
            events = await self._js.consumer(self._layout.events, group)
            inbox = await self._js.consumer(self._layout.control, group)
            if events is None or inbox is None:
                raise Conflict(f"group {group!r} is not declared: start its worker once, or it was removed meanwhile")
            some = entries[begin : begin + _AT_ONCE]
            states = await asyncio.gather(*(self._census.state(entry, events, inbox) for entry in some))
            free = [entry for entry, state in zip(some, states, strict=True) if state.state in ("done", "not wanted")]
            given += sum(await asyncio.gather(*(self._give(group, entry, id) for entry in free)))
        return given

    async def _give(self, group: str, entry: Entry, id: str) -> bool:
        subject = self._layout.inbox(group, entry.position)
        there = await self._js.message(self._layout.control, subject)
        if _came_by(there, id):
            return False
        body, headers = copied(entry, Origin(entry.subject, entry.time, replay=id), self._js.link.max_payload)
        if refers(headers):
            await hold(self._js, self._layout, group, entry.position)
        try:
            last = 0 if there is None else int(there.header("Nats-Sequence"))
            await self._js.store(subject, body, headers | expect(last))
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            # An earlier try, whose answer was lost; or somebody else gives it to the group at this moment.
            return _came_by(await self._js.message(self._layout.control, subject), id)
        return True


def _came_by(frame: Frame | None, id: str) -> bool:
    return frame is not None and bool(frame.header(ORIGIN)) and origin_of(frame).replay == id
