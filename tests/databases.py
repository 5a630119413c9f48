"""Real databases for tests: SQLite files, and a PostgreSQL server of the test session's own.

Use it with `pytest_plugins = ("databases",)` in a test module. `database` runs a test on both kinds; `sqlite` and
`postgresql` give one. Each test has a database of its own, empty.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from database_servers import Place, Server, create_database

__all__ = ["Place", "Server"]

_number = itertools.count(1)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="tidings-pg-"))
    server = Server(folder)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder)


@pytest.fixture
def sqlite(tmp_path: Path) -> Place:
    file = tmp_path / "app.db"
    return Place("sqlite", f"sqlite+aiosqlite:///{file}", f"sqlite:///{file}")


@pytest_asyncio.fixture
async def postgresql(postgresql_server: Server) -> Place:
    name = f"test_{next(_number)}"
    await create_database(postgresql_server, name)
    address = f"{postgresql_server.address}/{name}"
    return Place("postgresql", f"postgresql+asyncpg://{address}", f"postgresql+psycopg://{address}")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Place:
    """The test runs once on each kind of database."""
    place: Place = request.getfixturevalue(request.param)
    return place
