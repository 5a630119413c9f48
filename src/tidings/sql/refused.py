"""Staged messages that the broker does not take: what a person can see of them, and do about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from tidings.clock import Clock, SystemClock

from .database import Database
from .dialects import dialect_of
from .store import statement
from .tables import Tables

_LIST: Final = """
SELECT subject, message_id AS id, {now} - staged_at AS age, length(body) AS size, refused AS why,
    count(*) OVER () AS total
FROM {table}outbox WHERE refused IS NOT NULL{only} ORDER BY position LIMIT :limit"""

_RETRY: Final = "UPDATE {table}outbox SET leased_until = 0 WHERE refused IS NOT NULL{only}"

_DROP: Final = "DELETE FROM {table}outbox WHERE refused IS NOT NULL{only}"

_ONLY: Final = " AND message_id IN (SELECT a FROM ({keys}) AS given)"


class Refused(msgspec.Struct, frozen=True):
    """A message that the broker did not take when it was last tried."""

    subject: str
    id: str
    age: float
    """Seconds since it was staged."""
    size: int
    """Bytes of its body."""
    why: str
    """What the broker said."""


class Refusals:
    """The refused messages in one database's outbox. `ids` choose among them; None is all."""

    def __init__(self, database: Database, tables: Tables | None = None, clock: Clock | None = None) -> None:
        self._database = database
        self._tables = tables or Tables()
        self._clock = clock or SystemClock()

    async def look(self, limit: int, ids: Sequence[str] | None = None) -> tuple[list[Refused], int]:
        """The oldest ones, and how many there are."""
        return await self._database.look(self._look, limit, ids)

    async def retry(self, ids: Sequence[str] | None = None) -> int:
        """Have a worker's next look at the outbox send them again instead of the hourly one; returns how many."""
        return await self._database.run(self._change, _RETRY, ids)

    async def drop(self, ids: Sequence[str] | None = None) -> int:
        """Remove them for good; returns how many. One that is being tried at this moment may still arrive."""
        return await self._database.run(self._change, _DROP, ids)

    def _look(self, connection: Connection, limit: int, ids: Sequence[str] | None) -> tuple[list[Refused], int]:
        rows = self._execute(connection, _LIST, ids, limit=limit).all()
        found = [Refused(row.subject, row.id, float(row.age), row.size, row.why) for row in rows]
        return found, rows[0].total if rows else 0

    def _change(self, connection: Connection, template: str, ids: Sequence[str] | None) -> int:
        return int(self._execute(connection, template, ids).rowcount)

    def _execute(self, connection: Connection, template: str, ids: Sequence[str] | None, **parameters: Any) -> Any:
        whole = template.replace("{only}", "" if ids is None else _ONLY)
        if ids is not None:
            parameters |= dialect_of(connection.dialect.name).given([[id] for id in ids])
        words = {"now": self._clock.time(), **parameters}
        return connection.execute(statement(whole, connection.dialect.name, self._tables.before), words)
