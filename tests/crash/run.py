"""A whole matrix: one broker, one PostgreSQL, some lanes in which the cells run one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nats

from database_servers import Place, Server, create_database
from demo_system import clean_environment
from tidings import embedded

from .matrix import Cell, Found, Running, Tools
from .nursery import Nursery


async def run(
    cells: Sequence[Cell],
    kills: int,
    folder: Path,
    server: Server,
    *,
    seed: int,
    lanes: int = 2,
    defect: str = "",
    tell: Callable[[Found], None] = lambda found: None,
) -> list[Found]:
    """Every cell with so many kills; `tell` hears of each that is done. `defect` names one of `soak.defects`."""
    waiting = list(enumerate(cells))
    results: dict[int, Found] = {}

    async def lane(own_seed: int) -> None:
        async with tools(folder, own_seed) as own:
            while waiting:
                number, cell = waiting.pop(0)
                database = await _database(cell, folder, number, server)
                running = Running(cell, number, folder, database, own, defect=defect)
                results[number] = await running.run(kills)
                tell(results[number])

    broker = await embedded.start(folder / "broker")
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(lanes):
                group.create_task(lane(seed + number))
    finally:
        await broker.close()
    return [results[number] for number in sorted(results)]


@asynccontextmanager
async def tools(folder: Path, seed: int) -> AsyncIterator[Tools]:
    found = embedded.locate(folder / "broker", user="admin")
    assert found is not None, "the broker was started before"
    client = await nats.connect(found.url)
    nursery = await Nursery.start(clean_environment())
    try:
        yield Tools(client, nursery, random.Random(seed))
    finally:
        await nursery.close()
        await client.close()


async def _database(cell: Cell, folder: Path, number: int, server: Server) -> Place:
    if cell.database == "sqlite":
        file = folder / f"c{number}.db"
        return Place("sqlite", f"sqlite+aiosqlite:///{file}", f"sqlite:///{file}")
    name = f"crash_{folder.name.replace('-', '_')}_{number}".lower()
    await create_database(server, name)
    address = f"{server.address}/{name}"
    return Place("postgresql", f"postgresql+asyncpg://{address}", f"postgresql+psycopg://{address}")
