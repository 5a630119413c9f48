"""Epochs in the application's database: who was deposed does not commit any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from tidings.sql import Migrations, SqlUnits
from tidings.unit import Deposed

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)


@pytest.fixture
async def units(database: Place) -> AsyncIterator[SqlUnits]:
    await Migrations(database.url).upgrade()
    engine = database.engine()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (n integer)"))
    yield SqlUnits(async_sessionmaker(engine))
    await engine.dispose()


async def effects(units: SqlUnits) -> list[int]:
    async with units.begin(AsyncSession) as unit:
        return list((await unit.connection.execute(text("SELECT n FROM effects ORDER BY n"))).scalars())


async def late(units: SqlUnits, name: str) -> None:
    """A transaction of epoch 1."""
    async with units.begin(AsyncSession) as unit:
        await unit.connection.execute(text("INSERT INTO effects VALUES (2)"))
        await unit.fence(name, 1)
        await unit.commit()


async def test_epochs_only_rise(units: SqlUnits) -> None:
    """An epoch that is not later changes nothing, and its caller is told the one in force; names are apart."""
    assert [await units.enter("a", epoch) for epoch in (3, 5, 4, 5)] == [3, 5, 5, 5]
    assert await units.enter("b", 1) == 1


async def test_a_deposed_transaction_does_not_commit(units: SqlUnits) -> None:
    """A transaction that began before another worker took over is refused at its end, and what it wrote is undone;
    one of the latest epoch commits."""
    await units.enter("g", 1)
    async with units.begin(AsyncSession) as unit:
        await unit.fence("g", 1)
        await unit.connection.execute(text("INSERT INTO effects VALUES (1)"))
        await unit.commit()
    await units.enter("g", 2)
    with pytest.raises(Deposed, match="epoch 2"):
        await late(units, "g")
    with pytest.raises(Deposed, match="epoch None"):
        await late(units, "never entered")
    assert await effects(units) == [1]


async def test_an_epoch_begins_after_the_commits_of_the_one_before(units: SqlUnits) -> None:
    """Whoever takes over waits for a transaction that has passed its fence, and then sees what it wrote."""
    await units.enter("g", 1)
    async with units.begin(AsyncSession) as unit:
        await unit.connection.execute(text("INSERT INTO effects VALUES (1)"))
        await unit.fence("g", 1)
        entering = asyncio.create_task(units.enter("g", 2))
        done, _ = await asyncio.wait({entering}, timeout=0.3)
        assert not done
        await unit.commit()
    assert await entering == 2
    assert await effects(units) == [1]
