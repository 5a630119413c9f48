"""The whole to-do system in processes of its own, as `tidings demo` starts it, for tests that break it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

READY_WITHIN = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class DemoSystem:
    """One running demo. `output` has everything it has printed so far."""

    def __init__(self, data: Path, port: int, arguments: Iterable[str], environment: dict[str, str]) -> None:
        self.data = data
        self.port = port
        self.output: list[str] = []
        self._arguments = list(arguments)
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def text(self) -> str:
        return "".join(self.output)

    async def start(self) -> None:
        """Start it and wait until its page answers."""
        await self.spawn()
        await eventually(self._ready, READY_WITHIN, lambda: self.text)

    async def spawn(self) -> None:
        """Start it without waiting for it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tidings",
            "demo",
            "--no-open",
            "--port",
            str(self.port),
            "--data",
            str(self.data),
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**clean_environment(), **self._environment},
        )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.output.append(line.decode("utf-8", "replace"))

    async def _ready(self) -> bool:
        assert self.process.returncode is None, f"the demo ended by itself:\n{self.text}"
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{self.url}/ready", timeout=2)).status_code == 200
            except httpx.HTTPError:
                return False

    async def stop(self, number: int = signal.SIGINT, within: float = 40.0) -> int:
        """Ask it to end, as Ctrl-C does, and return its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        status = await asyncio.wait_for(self.process.wait(), within)
        if self._reader is not None:
            await self._reader
        return status

    async def abandon(self) -> None:
        """End whatever is left, by the pids that belong to this system."""
        for process in self.processes():
            _kill(process.pid)
        if self.process.returncode is None:
            _kill(self.process.pid)
            await self.process.wait()
        if self._reader is not None:
            await self._reader

    def processes(self, *words: str) -> list[psutil.Process]:
        """Its living processes whose command line has all these words: those that have its folder in their command
        line or environment."""
        found = []
        mark = str(self.data)
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                if mark not in line and mark not in " ".join(process.environ().values()):
                    continue
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if all(word in line for word in words):
                found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def workers(self, group: str) -> list[psutil.Process]:
        """The processes that run this group."""
        return [p for p in self.processes(group) if "demo" not in p.cmdline()]

    def kill(self, process: psutil.Process) -> None:
        """`kill -9`, of a process of this system only."""
        _kill(process.pid)

    async def post(self, client: httpx.AsyncClient, item: str, id: str | None = None) -> str:
        """Post an item until it is accepted; a repeat carries the same key, as a careful client does."""
        headers = {"Idempotency-Key": id} if id else {}
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = await client.post(f"{self.url}/todo", json={"item": item}, headers=headers, timeout=30)
                if answer.status_code == 202:
                    accepted: str = answer.json()["id"]
                    return accepted
                assert answer.status_code == 503, answer.text
            except httpx.TransportError:
                assert id is not None or time.monotonic() < deadline
            assert time.monotonic() < deadline, self.text[-5000:]
            await asyncio.sleep(0.05)

    async def items(self) -> list[dict[str, Any]]:
        """What `GET /todo` shows."""
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{self.url}/todo", timeout=30)
            answer.raise_for_status()
            listed: list[dict[str, Any]] = answer.json()
            return listed

    async def saved(self, items: set[str], within: float = 60.0) -> list[dict[str, Any]]:
        """Wait until all these items are listed, and return the list."""

        async def all_there() -> bool:
            try:
                return items <= {row["item"] for row in await self.items()}
            except httpx.HTTPError:
                return False

        await eventually(all_there, within, lambda: self.text[-8000:])
        return await self.items()

    async def tidings(self, *arguments: str, within: float = 60.0) -> tuple[int, str, str]:
        """Run a `tidings` command against this system's broker; returns status, stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tidings",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**clean_environment(), **self._environment, "TIDINGS_URL": f"embedded:{self.data}"},
        )
        out, err = await asyncio.wait_for(process.communicate(), within)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def tidings_json(self, *arguments: str) -> Any:
        """The same with `--json`, decoded; the command must succeed."""
        status, out, err = await self.tidings(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)


@asynccontextmanager
async def demo(data: Path, *arguments: str, **environment: str) -> AsyncIterator[DemoSystem]:
    """A demo that is ready; afterwards nothing of it is left."""
    system = DemoSystem(data, free_port(), arguments, environment)
    try:
        await system.start()
        yield system
    finally:
        await system.abandon()


async def eventually(condition: Callable[[], Any], within: float, why: Callable[[], str] = lambda: "") -> None:
    """Wait until the condition (plain or async) holds; fails with `why` after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert time.monotonic() < deadline, f"not within {within:g} s\n{why()}"
        await asyncio.sleep(0.05)


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of Tidings that a developer may have."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TIDINGS_", "TODO_"))}


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
