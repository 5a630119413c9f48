"""The reference application's processes on the embedded broker, for tests: web and workers of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psutil

from todo_app import WITHIN, eventually, listed

ROOT = Path(__file__).resolve().parents[1]


class System:
    """Processes of one application on one data directory."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._processes: list[asyncio.subprocess.Process] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TIDINGS_", "TODO_"))},
            "PYTHONPATH": str(ROOT / "examples"),
            "TIDINGS_DATA": str(data),
            "TIDINGS_URL": f"embedded:{data}",
        }

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        with (self.data / "output").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                env={**self._environment, **environment},
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        return process

    async def web(self, port: int, **environment: str) -> asyncio.subprocess.Process:
        """A web process that is ready."""
        process = await self.start("uvicorn", "todo.web:app", "--port", str(port), **environment)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WITHIN) as client:
            await eventually(lambda: is_ready(client), within=40)
        return process

    async def workers(self, **environment: str) -> asyncio.subprocess.Process:
        return await self.start("tidings", "run", "todo.handlers:bus", **environment)

    def broker(self) -> psutil.Process:
        """The process of nats-server."""
        [found] = [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if "nats-server" in (process.info["name"] or "")
            and str(self.data) in " ".join(process.info["cmdline"] or ())
        ]
        return found

    async def end(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.terminate()
        await asyncio.gather(*(self._ended(process) for process in self._processes))

    async def _ended(self, process: asyncio.subprocess.Process) -> None:
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


async def is_ready(client: httpx.AsyncClient) -> bool:
    with suppress(httpx.TransportError):
        return (await client.get("/ready")).status_code == 200
    return False


async def has(client: httpx.AsyncClient, *items: str) -> bool:
    return set(items) <= set(await listed(client))


@asynccontextmanager
async def system(data: Path) -> AsyncIterator[System]:
    made = System(data)
    try:
        yield made
    except BaseException:
        print((data / "output").read_text(errors="replace")[-8000:])
        raise
    finally:
        await made.end()


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=40) as client:
        yield client


async def kill(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.wait()
