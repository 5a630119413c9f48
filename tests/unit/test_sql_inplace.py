"""Where the statements of a transaction on SQLite run: in the event loop's thread, or in the connection's."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest_asyncio

from tidings.sql.inplace import switch_off, switch_on

DEADLINE = 20.0


class Place:
    """A connection with an SQL function that takes its time and says whether it ran in this thread."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.info: dict[str, Any] = {}

    async def here(self, seconds: float = 0.0) -> bool:
        cursor = await self.connection.cursor()
        await cursor.execute("SELECT here(?)", (seconds,))
        row = await cursor.fetchone()
        await cursor.close()
        assert row is not None
        return bool(row[0])

    async def until_here(self) -> int:
        """How often it ran elsewhere before."""
        end, runs = time.monotonic() + DEADLINE, 0
        while not await self.here():
            runs += 1
            assert time.monotonic() < end
        return runs


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    loop = threading.get_ident()

    def here(seconds: float) -> bool:
        time.sleep(seconds)
        return threading.get_ident() == loop

    async with aiosqlite.connect(tmp_path / "a.db", check_same_thread=False) as connection:
        await connection.create_function("here", 1, here)
        yield Place(connection)


async def test_a_quick_statement_of_a_transaction_runs_in_place_from_then_on(place: Place) -> None:
    """What is not known yet goes the usual way; outside a transaction of ours everything does."""
    assert not await place.here()
    switch_on(place.connection, place.info)
    assert await place.until_here() > 0
    assert await place.here()
    switch_off(place.info)
    assert not await place.here()
    switch_on(place.connection, place.info)
    assert await place.here()


async def test_a_statement_that_was_slow_once_gets_another_try(place: Place) -> None:
    """It has held up the event loop, and goes the usual way for a hundred calls (two with each run) before it may do so
    again, then for twice as many: one collection of garbage must not make a worker slow for good."""
    switch_on(place.connection, place.info)
    await place.until_here()
    assert await place.here(0.03)
    assert await place.until_here() >= 50
    assert await place.here(0.03)
    assert await place.until_here() >= 100
