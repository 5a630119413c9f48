"""A database that outlives the log: the broker is emptied, or another one takes its place."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import tidings
from tidings.engine import Outgoing


async def test_a_foreign_message_of_a_new_log_is_handled(tmp_path: Path) -> None:
    """A message without an id stands at position 1 of each of two brokers, one after the other: the inbox of the one
    database that both have does not take the second for the first."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'kept.sqlite3'}")
    sessions = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE kept (item TEXT)"))
    for item in ("first", "second"):
        bus = tidings.Bus("shop", url=f"embedded:{tmp_path / item}", sessions=sessions)

        @bus.on("events.foreign", group="keep")
        async def keep(message: tidings.Message[dict[str, str]], db: AsyncSession) -> None:
            await db.execute(text("INSERT INTO kept VALUES (:item)"), message.data)

        async with bus:
            foreign = Outgoing("events.foreign", b'{"item":"%s"}' % item.encode(), {}, item)
            assert [stored.position for stored in await bus.engine.publish([foreign])] == [1]
            await bus.work()
            async with asyncio.timeout(20):
                while (counts := (await bus.engine.stats()).groups["keep"]).waiting or counts.leased:
                    await asyncio.sleep(0.01)
            assert not counts.dead
    async with engine.connect() as connection:
        assert list(await connection.scalars(text("SELECT item FROM kept ORDER BY item"))) == ["first", "second"]
    await engine.dispose()
