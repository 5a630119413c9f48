"""An application with a database, as the tests of `tidings.sql` need it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import sessionmaker

from tidings.engine import Outgoing
from tidings.sql import SqlUnits
from tidings.unit import InboxKey

if TYPE_CHECKING:
    from databases import Place


def message(number: int, **changes: Any) -> Outgoing:
    fields = {"subject": "events.a", "body": b"\x00\xff{}", "headers": {"ce-type": "ä"}, "id": f"m{number}"}
    return Outgoing(**{**fields, **changes})


def key(number: int, group: str = "g") -> InboxKey:
    return InboxKey(group, "events.a", f"m{number}")


class App:
    """Sessions and units on one database; `items(id, n)` is the application's own table."""

    def __init__(self, place: Place, *, sync: bool = False, pool: dict[str, Any] | None = None, **options: Any) -> None:
        self.place = place
        self.engine: Any = (place.sync_engine if sync else place.engine)(**pool or {})
        maker: Any = sessionmaker if sync else async_sessionmaker
        self.sessions: Any = maker(self.engine)
        self.units = SqlUnits(self.sessions, **options)

    @classmethod
    async def start(
        cls, place: Place, *, sync: bool = False, pool: dict[str, Any] | None = None, **options: Any
    ) -> App:
        """With all tables."""
        app = cls(place, sync=sync, pool=pool, **options)
        await app.units.migrations.upgrade()
        await app.units.prepare()
        await app.sql("CREATE TABLE IF NOT EXISTS items (id integer PRIMARY KEY, n integer NOT NULL)")
        return app

    async def close(self) -> None:
        await self.units.close()
        if isinstance(self.engine, AsyncEngine):
            await self.engine.dispose()
        else:
            await asyncio.to_thread(self.engine.dispose)

    async def sql(self, statement: str) -> list[Any]:
        """Run a statement as somebody else would, over a connection of its own."""
        return await asyncio.to_thread(self._sql, create_engine(self.place.sync_url), statement)

    async def count(self, table: str) -> int:
        return int((await self.sql(f"SELECT count(*) FROM {table}"))[0][0])

    async def stage(self, *numbers: int) -> None:
        async with self.units.begin(AsyncSession) as unit:
            await unit.stage([message(n) for n in numbers])
            await unit.commit()

    async def end_leases(self, table: str = "tidings_outbox") -> None:
        await self.sql(f"UPDATE {table} SET leased_until = 0")

    @staticmethod
    def _sql(engine: Engine, statement: str) -> list[Any]:
        try:
            with engine.begin() as connection:
                result = connection.execute(text(statement))
                return list(result.all()) if result.returns_rows else []
        finally:
            engine.dispose()


async def insert(unit: Any, number: int) -> None:
    """What a handler does, on whatever it was given."""
    statement = text("INSERT INTO items (id, n) VALUES (:id, 0)"), {"id": number}
    await unit.run(lambda: unit.connection.execute(*statement))
