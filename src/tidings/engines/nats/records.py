"""Small shared state with compare-and-set."""

from __future__ import annotations

import secrets

from ...engine import Record
from ...errors import Conflict, Unconfirmed
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect
from .layout import Layout


class Records:
    def __init__(self, js: JetStream, layout: Layout) -> None:
        self._js = js
        self._layout = layout

    async def recall(self, key: str) -> Record | None:
        """See `Engine.recall`; read from the leader, so that a confirmed write is always seen."""
        frame = await self._js.message(self._layout.control, self._layout.record(key))
        return Record(frame.body, int(frame.header("Nats-Sequence"))) if frame else None

    async def register(self, key: str, value: bytes, revision: int) -> int:
        """See `Engine.register`. The mark tells our own write, whose answer was lost, from somebody else's."""
        subject, mark = self._layout.record(key), secrets.token_hex(8)
        headers = {"Nats-Rollup": "sub", "Nats-Msg-Id": mark} | expect(revision)
        try:
            return (await self._js.store(subject, value, headers)).seq
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            frame = await self._js.message(self._layout.control, subject)
            if frame is not None and frame.header("Nats-Msg-Id") == mark:
                return int(frame.header("Nats-Sequence"))
            raise Conflict(f"the record {key!r} was changed by somebody else") from error
        except Unconfirmed as error:
            raise Unconfirmed(f"the record {key!r} was written or not: read it again ({error})") from error
