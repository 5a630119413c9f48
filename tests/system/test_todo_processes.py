"""The reference application as it runs for real: web and workers in processes of their own, on the embedded broker."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.async_api import async_playwright, expect

from todo_app import WITHIN, add, eventually, free_port, listed, pushed

ROOT = Path(__file__).resolve().parents[2]


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

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        with (self.data / "output").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments, env=self._environment, stdout=output, stderr=output
            )
        self._processes.append(process)
        return process

    async def web(self, port: int) -> asyncio.subprocess.Process:
        """A web process that is ready."""
        process = await self.start("uvicorn", "todo.web:app", "--port", str(port))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WITHIN) as client:
            await eventually(lambda: is_ready(client), within=40)
        return process

    async def workers(self) -> asyncio.subprocess.Process:
        return await self.start("tidings", "run", "todo.handlers:bus")

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


async def test_a_killed_web_process_costs_no_browser_an_event(tmp_path: Path) -> None:
    """kill -9 of the web process a browser is connected to: another one, or the same restarted, resumes its stream."""
    one, other = free_port(), free_port()
    async with system(tmp_path) as s, client_of(one) as first, client_of(other) as second:
        web = await s.web(one)
        await asyncio.gather(s.web(other), s.workers())
        async with pushed(first) as stream:
            await stream.next()
            await add(first, "seen")
            last = (await stream.next()).id
            await kill(web)
        missed = [f"missed {n}" for n in range(10)]
        for item in missed:
            await add(second, item)
        await eventually(lambda: has(second, *missed))
        await s.web(one)
        for client in (first, second):
            async with pushed(client, last) as stream:
                assert (await stream.next()).data == {"resumed": True}
                events = [await stream.next() for _ in missed]
                assert [event.data["data"]["item"] for event in events] == missed


async def test_a_silent_broker_is_unknown_and_a_repeat_adds_once(tmp_path: Path) -> None:
    """While the broker hangs, adding answers 503 with the id; repeated with it, before and after, one item is added."""
    port = free_port()
    async with system(tmp_path) as s, client_of(port) as client:
        await asyncio.gather(s.web(port), s.workers())
        broker = s.broker()
        broker.send_signal(signal.SIGSTOP)
        try:
            lost = await client.post("/todo", json={"item": "milk"})
        finally:
            broker.send_signal(signal.SIGCONT)
        assert lost.status_code == 503
        assert int(lost.headers["retry-after"]) > 0
        key = {"Idempotency-Key": lost.json()["id"]}
        await eventually(lambda: accepted(client, key), within=40)
        await add(client, "last")
        await eventually(lambda: has(client, "milk", "last"), within=60)
        assert sorted(await listed(client)) == ["last", "milk"]


async def accepted(client: httpx.AsyncClient, key: dict[str, str]) -> bool:
    return (await client.post("/todo", json={"item": "milk"}, headers=key)).status_code == 202


@pytest.mark.browser
async def test_an_open_page_survives_a_killed_web_process(tmp_path: Path, chromium: str) -> None:
    """The page reconnects by itself and shows what others have added meanwhile, and what was written into it."""
    one, other = free_port(), free_port()
    async with system(tmp_path) as s, client_of(other) as client, async_playwright() as playwright:
        web = await s.web(one)
        await asyncio.gather(s.web(other), s.workers())
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = await browser.new_page()
            loads: list[str] = []
            page.on("request", lambda request: loads.append(request.url) if "/todo?" in request.url else None)
            await page.goto(f"http://127.0.0.1:{one}/")
            await expect(page.get_by_text("Nothing to do.")).to_be_visible(timeout=20_000)
            await kill(web)
            await expect(page.locator("#connection")).to_have_text("Reconnecting", timeout=20_000)
            await add(client, "missed")
            await page.get_by_label("What needs doing?").fill("written meanwhile")
            await page.keyboard.press("Enter")
            await eventually(lambda: has(client, "missed"))
            await s.web(one)
            await expect(page.locator("#items > li[data-state=saved]")).to_have_count(2, timeout=20_000)
            assert await page.locator("#items .text").all_text_contents() == ["missed", "written meanwhile"]
            # Resumed, not loaded again.
            assert len(loads) == 1
        finally:
            await browser.close()
