"""A whole matrix: one broker, one PostgreSQL, some lanes in which the cells run one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import nats

import redis_truth
from brokers import server, soon
from database_servers import Place, Server, create_database
from demo_system import clean_environment
from redis_server import RedisServer
from tidings import embedded

from .matrix import Cell, Found, Running, Tools
from .nursery import Nursery
from .truth import Log, NatsLog, RedisLog

Engine: TypeAlias = Literal["embedded", "valkey"]


async def run(
    cells: Sequence[Cell],
    kills: int,
    folder: Path,
    server: Server,
    *,
    seed: int,
    lanes: int = 2,
    engine: Engine = "embedded",
    defect: str = "",
    tell: Callable[[Found], None] = lambda found: None,
) -> list[Found]:
    """Every cell with so many kills; `tell` hears of each that is done. `defect` names one of `soak.defects`."""
    waiting = list(enumerate(cells))
    results: dict[int, Found] = {}

    async def lane(own_seed: int) -> None:
        async with brought(broker, own_seed) as own:
            while waiting:
                number, cell = waiting.pop(0)
                database = await _database(cell, folder, number, server)
                running = Running(cell, number, folder, database, own, defect=defect)
                results[number] = await running.run(kills)
                tell(results[number])

    async with BROKERS[engine](folder / "broker") as broker, asyncio.TaskGroup() as group:
        for number in range(lanes):
            group.create_task(lane(seed + number))
    return [results[number] for number in sorted(results)]


@asynccontextmanager
async def brought(broker: Broker, seed: int) -> AsyncIterator[Tools]:
    async with broker.log() as log:
        nursery = await Nursery.start(clean_environment())
        try:
            yield Tools(broker.url, log, nursery, random.Random(seed))
        finally:
            await nursery.close()


@dataclass(frozen=True)
class Broker:
    """One that runs."""

    url: str
    log: Callable[[], AbstractAsyncContextManager[Log]]
    """A connection of its own that sees what is really there."""


@asynccontextmanager
async def nats_broker(directory: Path) -> AsyncIterator[Broker]:
    broker = await embedded.start(directory)

    @asynccontextmanager
    async def log() -> AsyncIterator[Log]:
        found = embedded.locate(directory, user="admin")
        assert found is not None, "the broker was started before"
        client = await nats.connect(found.url)
        try:
            yield NatsLog(client)
        finally:
            await client.close()

    try:
        yield Broker(f"embedded:{directory}", log)
    finally:
        await broker.close()
        await soon(lambda: server(directory) is None, "the server ends behind its last user")


@asynccontextmanager
async def valkey_broker(directory: Path) -> AsyncIterator[Broker]:
    """With an fsync before each answer."""
    server = RedisServer(directory)

    @asynccontextmanager
    async def log() -> AsyncIterator[Log]:
        async with redis_truth.connected(server.url) as client:
            yield RedisLog(client)

    try:
        await server.start()
        yield Broker(server.url, log)
    finally:
        server.kill()


BROKERS: Mapping[Engine, Callable[[Path], AbstractAsyncContextManager[Broker]]] = {
    "embedded": nats_broker,
    "valkey": valkey_broker,
}


async def _database(cell: Cell, folder: Path, number: int, server: Server) -> Place:
    if cell.database == "sqlite":
        file = folder / f"c{number}.db"
        return Place("sqlite", f"sqlite+aiosqlite:///{file}", f"sqlite:///{file}")
    name = f"crash_{folder.name.replace('-', '_')}_{number}".lower()
    await create_database(server, name)
    address = f"{server.address}/{name}"
    return Place("postgresql", f"postgresql+asyncpg://{address}", f"postgresql+psycopg://{address}")
