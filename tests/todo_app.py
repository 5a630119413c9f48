"""The reference application for tests: imported afresh on a database of its own, and served on a real socket."""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import text

WITHIN = 20.0


@dataclass(frozen=True)
class Todo:
    """The application's modules."""

    events: ModuleType
    database: ModuleType
    handlers: ModuleType
    web: ModuleType

    @property
    def bus(self) -> Any:
        return self.handlers.bus


@asynccontextmanager
async def todo(
    data: Path, *, mutate: bool = False, url: str = "memory:", database: str | None = None
) -> AsyncIterator[Todo]:
    """The application as a process with these settings would import it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TIDINGS_NAMESPACE", "TIDINGS_DATABASE_URL", "TODO_MUTATE"):
            patch.delenv(name, raising=False)
        patch.setenv("TIDINGS_DATA", str(data))
        patch.setenv("TIDINGS_URL", url)
        if mutate:
            patch.setenv("TODO_MUTATE", "1")
        if database is not None:
            patch.setenv("TIDINGS_DATABASE_URL", database)
        _forget()
        names = ("events", "database", "handlers", "web")
        app = Todo(*(importlib.import_module(f"todo.{name}") for name in names))
        try:
            yield app
        finally:
            await app.bus.close()
            await app.database.engine.dispose()
            _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name == "todo" or name.startswith("todo.")]:
        del sys.modules[name]


@asynccontextmanager
async def served(app: Any, port: int = 0) -> AsyncIterator[str]:
    """The URL of an application on a server of this process."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, lifespan="on", log_level="warning", timeout_graceful_shutdown=5)
    )
    task = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started or task.done())
        assert server.started, "the server did not start: see its log"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def running(
    data: Path, *, workers: bool = True, mutate: bool = False
) -> AsyncIterator[tuple[Todo, httpx.AsyncClient]]:
    """The whole system in this process, and a client for it."""
    async with (
        todo(data, mutate=mutate) as app,
        served(app.web.create_app(workers=workers)) as url,
        httpx.AsyncClient(base_url=url, timeout=WITHIN) as client,
    ):
        yield app, client


@dataclass(frozen=True)
class Event:
    """One server-sent event, as it came."""

    name: str
    id: str | None
    data: Any


class Stream:
    """An open stream of server-sent events, read from its raw lines; those named in `without` are passed over."""

    def __init__(self, response: httpx.Response, without: str | None = None) -> None:
        self.response = response
        self.without = without
        self._lines = response.aiter_lines()

    async def next(self) -> Event:
        """The next event; comments are passed over."""
        while (event := await self._next()).name == self.without:
            pass
        return event

    async def _next(self) -> Event:
        fields: dict[str, str] = {}
        async with asyncio.timeout(WITHIN):
            while True:
                line = await anext(self._lines)
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    assert name in ("event", "id", "data", "retry"), line
                    fields[name] = value
                elif not line and fields:
                    return Event(fields["event"], fields.get("id"), json.loads(fields["data"]))


@asynccontextmanager
async def pushed(
    client: httpx.AsyncClient,
    last: str | None = None,
    *,
    by_query: bool = False,
    without: str | None = "events.todo.newitem",
) -> AsyncIterator[Stream]:
    """The push stream, opened as a browser does; `last` is its `Last-Event-ID`."""
    headers = {"Last-Event-ID": last} if last is not None and not by_query else {}
    params = {"last-event-id": last} if last is not None and by_query else {}
    async with client.stream("GET", "/push", headers=headers, params=params, follow_redirects=True) as response:
        assert response.status_code == 200
        yield Stream(response, without)


async def eventually(condition: Callable[[], Any], within: float = WITHIN) -> None:
    """Wait until the condition (plain or async) holds."""
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert time.monotonic() < deadline, f"not within {within:g} s"
        await asyncio.sleep(0.02)


async def listed(client: httpx.AsyncClient) -> list[str]:
    """The texts on the list, newest first."""
    return [row["item"] for row in (await client.get("/todo")).raise_for_status().json()]


async def add(client: httpx.AsyncClient, item: str) -> str:
    """Post an item; returns the id of its message."""
    answer = await client.post("/todo", json={"item": item})
    assert answer.status_code == 202, answer.text
    id: str = answer.json()["id"]
    return id


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


POISON = """
CREATE TRIGGER poison BEFORE INSERT ON todo_items WHEN NEW.item LIKE 'poison%'
BEGIN SELECT RAISE(ABORT, 'secret'); END
"""


@asynccontextmanager
async def poisoned(app: Todo) -> AsyncIterator[None]:
    """While it is entered the database takes no item that begins with `poison`."""
    async with app.database.engine.begin() as db:
        await db.execute(text(POISON))
    try:
        yield
    finally:
        async with app.database.engine.begin() as db:
            await db.execute(text("DROP TRIGGER poison"))
