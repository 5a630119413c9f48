"""Embedded brokers for tests: one in a directory of its own, its processes, and clients in other processes.

Use it with `pytest_plugins = ("brokers",)` in a test module: `directory` fails a test that leaves an orphan.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client as Nats

from tidings import embedded
from tidings.embedded.locate import Layout
from tidings.embedded.locks import holder_of

DEADLINE = 20.0

CLIENT = """
import asyncio, sys
from pathlib import Path
from tidings import embedded

async def main():
    async with await embedded.start(Path(sys.argv[1])) as broker:
        print(broker.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


class Client:
    """Another process that uses the broker until it is told to leave, or killed."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def url(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)

    def leave(self) -> int:
        """Let it end in order; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE)

    def dispose(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def server(directory: Path) -> int | None:
    return holder_of(Layout.of(directory).fence)


def supervisor(directory: Path) -> int | None:
    return holder_of(Layout.of(directory).supervisor_lock)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.01)


async def soon(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(until, condition, what)


async def replaced(directory: Path, old: int | None) -> None:
    await soon(lambda: server(directory) not in (None, old), "another server in the place of the one that died")


def kill(pid: int | None) -> int:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


@contextmanager
def broker_directory(directory: Path) -> Iterator[Path]:
    """At the end nobody uses it any more; then its processes must go by themselves."""
    yield directory
    try:
        until(lambda: server(directory) is None and supervisor(directory) is None, f"an orphan in {directory}")
    finally:
        for left in (supervisor(directory), server(directory)):
            if left is not None:
                kill(left)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with broker_directory(tmp_path / ".tidings") as directory:
        yield directory


@pytest.fixture
def client(directory: Path) -> Iterator[Callable[[], Client]]:
    """Start another process that uses the directory's broker."""
    started: list[Client] = []

    def start() -> Client:
        started.append(Client(directory))
        return started[-1]

    yield start
    for one in started:
        one.dispose()


@asynccontextmanager
async def connected(address: embedded.Address) -> AsyncIterator[Nats]:
    async def quiet(_: Exception) -> None:
        """What is refused is asserted by what did not happen."""

    nc = await nats.connect(address.url, error_cb=quiet, allow_reconnect=False)
    try:
        yield nc
    finally:
        await nc.close()


async def api(nc: Nats, verb: str, request: object = None) -> dict[str, object] | None:
    """The answer of the JetStream API, or None when the server does not even pass the request on."""
    try:
        answer = await nc.request(f"$JS.API.{verb}", b"" if request is None else json.dumps(request).encode(), 0.5)
    except nats.errors.TimeoutError:
        return None
    decoded: dict[str, object] = json.loads(answer.data)
    return decoded


async def make_streams(address: embedded.Address) -> None:
    async with connected(address) as nc:
        for name, subject in (("tidings-events", "events.>"), ("tidings-control", "_t.>")):
            made = await api(nc, f"STREAM.CREATE.{name}", {"name": name, "subjects": [subject], "allow_direct": True})
            assert made is not None
            assert "error" not in made


async def store(nc: Nats, subject: str, body: bytes) -> int:
    return (await nc.jetstream().publish(subject, body)).seq


async def stored(address: embedded.Address, stream: str = "tidings-events") -> int:
    async with connected(address) as nc:
        return (await nc.jetstream().stream_info(stream)).state.messages


# Coming and going
