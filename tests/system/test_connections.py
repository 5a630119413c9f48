"""A crowd at the to-do API is a queue for the database, not a crowd of connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg  # type: ignore[import-untyped]
import httpx
import pytest

from demo_system import DemoSystem, demo

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)

CLIENTS = 300
POSTS = 3000

CONNECTIONS = """
SELECT application_name, count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'tidings%' GROUP BY 1"""
SAVED = "SELECT count(*), count(DISTINCT item) FROM todo_items"


async def burst(system: DemoSystem) -> None:
    """Post everything, each client one after another on a connection of its own, all clients at once."""
    items = iter(range(POSTS))
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(limits=limits) as http:

        async def client() -> None:
            for number in items:
                await system.post(http, f"item {number}", id=f"post-{number}")

        await asyncio.gather(*(client() for _ in range(CLIENTS)))


@pytest.mark.timeout(300)
async def test_three_save_workers_are_three_connections(tmp_path: Path, postgresql: Place) -> None:
    """300 clients burst 3,000 posts at the to-do API with three save workers on PostgreSQL: never more than three
    connections are the save-handler's, and every item is saved once."""
    url = postgresql.url.replace("+asyncpg", "")
    async with demo(tmp_path / "data", "--scale", "save=3", "--database-url", url) as system:
        watcher = await asyncpg.connect(url)
        try:
            posting = asyncio.create_task(burst(system))
            most: Counter[str] = Counter()
            async with asyncio.timeout(240):
                while not posting.done() or (await watcher.fetchrow(SAVED))[0] < POSTS:
                    await asyncio.wait({posting}, timeout=0.05)
                    for name, count in await watcher.fetch(CONNECTIONS):
                        most[name] = max(most[name], count)
            await posting
            assert tuple(await watcher.fetchrow(SAVED)) == (POSTS, POSTS)
        finally:
            await watcher.close()
    assert 1 <= most["tidings save-handler"] <= 3, most
    assert set(most) <= {"tidings save-handler", "tidings"}, most
