"""Who stands by, for people to see: nothing is decided by it."""

from __future__ import annotations

import contextlib
from typing import Final

import msgspec

from tidings.clock import Clock
from tidings.engine import Engine
from tidings.errors import EngineError

_FORGOTTEN: Final = 2.5
"""Leases after which one that says nothing is left out."""


class Seen(msgspec.Struct, frozen=True):
    """The record: when each has last said that it stands by, in seconds since 1970 by its own clock."""

    lease: float
    by: dict[str, float] = {}

    def lately(self, now: float) -> dict[str, float]:
        return {name: at for name, at in self.by.items() if now - at < _FORGOTTEN * self.lease}


async def standing_by(engine: Engine, group: str, now: float) -> list[str]:
    """Those who have said so lately."""
    record = await engine.recall(_key(group))
    return [] if record is None else sorted(msgspec.json.decode(record.value, type=Seen).lately(now))


async def note(engine: Engine, group: str, name: str, *, clock: Clock, lease: float, there: bool = True) -> None:
    """Say that one stands by, or does not any more. That others write at the same time does not matter: it is said
    again."""
    with contextlib.suppress(EngineError):
        record, now = await engine.recall(_key(group)), clock.time()
        seen = Seen(lease) if record is None else msgspec.json.decode(record.value, type=Seen)
        by = {other: at for other, at in seen.lately(now).items() if other != name} | ({name: now} if there else {})
        if by.keys() | seen.by.keys():
            value = msgspec.json.encode(Seen(lease, by))
            await engine.register(_key(group), value, 0 if record is None else record.revision)


def _key(group: str) -> str:
    return f"order.{group}.standby"
