"""Who dropped and edited dead letters, and why: the last of it, in one small shared record."""

from __future__ import annotations

from typing import Final

import msgspec

from ..engine import Engine
from ..errors import Conflict

_KEY: Final = "dead-letter-acts"
_KEPT: Final = 100


class Act(msgspec.Struct, frozen=True):
    """Something a person told Tidings to do."""

    at: float
    """Seconds since 1970."""
    who: str
    what: str
    """`drop` or `edit`."""
    which: str
    """The selection, in the words of the command line."""
    count: int
    """How many it was about when it began."""
    because: str = ""


async def note(engine: Engine, act: Act) -> None:
    """Write it down before it is done; the newest hundred are kept."""
    while True:
        known, revision = await _load(engine)
        value = msgspec.json.encode([*known, act][-_KEPT:])
        try:
            await engine.register(_KEY, value, revision)
        except Conflict:
            continue
        return


async def acts(engine: Engine) -> list[Act]:
    """What is written down, the oldest first."""
    return (await _load(engine))[0]


async def _load(engine: Engine) -> tuple[list[Act], int]:
    record = await engine.recall(_KEY)
    return ([], 0) if record is None else (msgspec.json.decode(record.value, type=list[Act]), record.revision)
