"""A web process and its browsers: a thousand of them, and one that has frozen."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import tidings
from todo_app import add, eventually, free_port, listed, served
from todo_processes import client_of, system

BROWSERS = 1000
MEMORY = 200 * 1024 * 1024


@pytest.fixture
def _many_files() -> Iterator[None]:
    """Room for so many connections in this process, and in those that it starts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Browser:
    """One open stream, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Browser:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /push/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        browser = cls(reader, writer)
        await browser.hear(b"event: ready")
        return browser

    async def hear(self, words: bytes) -> float:
        """Read until it was said; when that was."""
        async with asyncio.timeout(60):
            await self.reader.readuntil(words)
        return time.monotonic()


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("_many_files")
async def test_a_thousand_browsers_hear_of_an_item(
    tmp_path: Path, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A thousand streams on one web process: each hears of each item, in less than 200 MB; SIGTERM ends the process
    while they are all connected. How long it took is reported, not judged: that is the machine's."""
    port = free_port()
    async with system(tmp_path) as s, client_of(port) as client:
        web = await s.web(port)
        await s.workers()
        await add(client, "first")
        await eventually(lambda: listed(client), within=60)
        browsers: list[Browser] = []
        for _ in range(BROWSERS // 50):
            browsers += await asyncio.gather(*(Browser.open(port) for _ in range(50)))
        took = []
        for number in range(3):
            began = time.monotonic()
            published = asyncio.create_task(add(client, f"item {number}"))
            heard = await asyncio.gather(*(browser.hear(b"event: events.todo.itemsaved") for browser in browsers))
            await published
            took.append(max(heard) - began)
        memory = psutil.Process(web.pid).memory_info().rss
        asked = time.monotonic()
        web.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(web.wait(), 30) in (0, -signal.SIGTERM)
        ended = time.monotonic() - asked
        for browser in browsers:
            browser.writer.close()
    told = {
        "from the request to the last browser, s": [round(seconds, 2) for seconds in took],
        "memory of the web process, MB": round(memory / 1e6),
        "end after SIGTERM, s": round(ended, 2),
    }
    for name, value in told.items():
        record_property(name, value)
    with capsys.disabled():
        print(f"\n{BROWSERS} browsers: {told}")
    assert memory < MEMORY


class Tick(tidings.Event, subject="events.clock.tick"):
    text: str


@pytest.mark.skipif(sys.platform != "linux", reason="only this kernel tells what the other side takes")
@pytest.mark.parametrize("pause", [None, 0.1, 0.01], ids=["heartbeats", "ten a second", "a hundred a second"])
async def test_a_frozen_browser_is_dropped_although_its_system_takes_all_for_it(pause: float | None) -> None:
    """A browser that has read a little and then stops is dropped, whether there is something to send or not, long
    before there is a write that blocks; its neighbour hears all, and is not dropped."""
    bus = tidings.Bus("clock", url="memory:")
    application = bus.push(Tick)
    app = Starlette(routes=[Mount("/push", application)], lifespan=bus.lifespan)
    async with served(app) as url:
        port = int(url.rpartition(":")[2])
        frozen = socket.create_connection(("127.0.0.1", port))
        frozen.sendall(b"GET /push/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        frozen.setblocking(False)
        await asyncio.get_running_loop().sock_recv(frozen, 100)
        neighbour = await Browser.open(port)
        said = 0
        async with asyncio.timeout(60):
            while len(application._crowd) == 2:
                await asyncio.sleep(pause or 0.1)
                if pause is not None:
                    await bus.publish(Tick(text=f"{said} " + 100 * "x"))
                    await neighbour.hear(f'"{said} '.encode())
                    said += 1
        assert len(application._crowd) == 1
        await bus.publish(Tick(text="still there"))
        await neighbour.hear(b"still there")
        neighbour.writer.close()
        frozen.close()
