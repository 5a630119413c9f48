"""Messages that wait for their time: schedules of the server on subjects of their own in Control."""

from __future__ import annotations

import secrets
from typing import Final

from ...engine import Outgoing
from ...errors import Unconfirmed
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect
from .connection import Frame
from .layout import Layout
from .strangers import OF_A_GET, is_foreign
from .wire import clean, seconds

_REMEMBERED: Final = "600s"


class Later:
    def __init__(self, js: JetStream, layout: Layout) -> None:
        self._js = js
        self._layout = layout

    async def delayed(self, limit: int) -> list[Outgoing]:
        """See `Engine.delayed`."""
        found: list[Outgoing] = []
        async for frames in self._js.pages(self._layout.control, self._layout.every_schedule, 1):
            found += [self._message(frame) for frame in frames if frame.header("Nats-Schedule")]
            if len(found) >= limit:
                break
        return found[:limit]

    async def cancel(self, subject: str, id: str) -> bool:
        """See `Engine.cancel`. A tombstone takes the schedule's place if it is still the one that was seen, so that
        of firing and cancelling only one happens; the mark tells our own tombstone, whose answer was lost."""
        place, mark = self._layout.schedule(subject, id), secrets.token_hex(8)
        waiting = await self._js.message(self._layout.control, place)
        if waiting is None or not waiting.header("Nats-Schedule"):
            return False
        headers = {"Nats-Rollup": "sub", "Nats-TTL": _REMEMBERED, "Nats-Msg-Id": mark}
        try:
            await self._js.store(place, b"", headers | expect(int(waiting.header("Nats-Sequence"))))
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            now = await self._js.message(self._layout.control, place)
            return now is not None and now.header("Nats-Msg-Id") == mark
        except Unconfirmed as error:
            raise Unconfirmed(f"{id} on {subject} was cancelled or not: cancel it again ({error})") from error
        return True

    async def restore(self) -> int:
        """Put in force again what strangers ended: of the messages on a subject the server takes only the last one for
        a schedule, and lets nobody but us write here, but for its own answers (`strangers`). Returns how many.

        An id that the server still knows is left for the next time, some minutes later.
        """
        crowded = await self._js.subjects(self._layout.control, self._layout.every_schedule)
        return sum([await self._restored(place) for place, count in crowded.items() if count > 1])

    async def _restored(self, place: str) -> bool:
        frames = [frame async for page in self._js.pages(self._layout.control, place, 1) for frame in page]
        ours = [frame for frame in frames if not is_foreign(frame)]
        if not frames or not is_foreign(frames[-1]):
            return False
        if not ours or not ours[-1].header("Nats-Schedule"):
            await self._js.clear(place)  # it was cancelled
            return False
        headers = {name: value for name, value in (ours[-1].headers or {}).items() if name not in OF_A_GET}
        headers |= {"Nats-Rollup": "sub"} | expect(int(frames[-1].header("Nats-Sequence")))
        try:
            return not (await self._js.store_once(place, ours[-1].body, headers)).duplicate
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            return False  # it was cancelled just now

    def _message(self, frame: Frame) -> Outgoing:
        subject = frame.header("Nats-Schedule-Target").removeprefix(self._layout.due(""))
        return Outgoing(
            subject,
            frame.body,
            dict(clean(frame.headers)),
            frame.header("Nats-Msg-Id").removesuffix(f" {subject}"),
            round(seconds(frame.header("Nats-Schedule").removeprefix("@at ")), 6),
        )
