"""The reference application as it runs for real: web and workers in processes of their own, on the embedded broker."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page, async_playwright, expect

from tidings import embedded
from todo_app import POISON, add, eventually, free_port, listed, pushed
from todo_processes import client_of, has, kill, system


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


async def test_a_web_process_that_may_only_publish_serves_it_all(tmp_path: Path) -> None:
    """With the broker's user that cannot erase anything a web process adds, waits, pushes what is saved and what has
    failed, and tells outcomes; failures of another process's workers reach its browsers."""
    port = free_port()
    async with system(tmp_path) as s, client_of(port) as client:
        await s.workers(TIDINGS_RETRY="attempts=1")
        await eventually(lambda: located(tmp_path), within=40)
        await s.web(port, TIDINGS_URL=located(tmp_path))
        async with pushed(client) as stream:
            await stream.next()
            saved = await client.post("/todo", json={"item": "milk"}, headers={"Prefer": "wait=10"})
            assert (saved.status_code, saved.json()["item"]["item"]) == (200, "milk")
            assert (await stream.next()).data["correlation"] == saved.json()["id"]
            with sqlite3.connect(tmp_path / "todo.sqlite3") as db:
                db.execute(POISON)
            sent = await client.post("/todo", json={"item": "poison"}, headers={"Prefer": "wait=10"})
            assert sent.status_code == 202
            failed = await stream.next()
            assert (failed.name, failed.data["correlation"]) == ("outcome", sent.json()["id"])
            assert (await client.get(sent.headers["location"])).json()["state"] == "dead"
            [pending] = (await client.get("/todo/pending")).json()
            assert (pending["item"], pending["state"]) == ("poison", "dead")
            asked = await client.get("/push/outcome", params={"id": pending["id"], "position": pending["position"]})
            assert asked.json()["reason"] == "handler_error"


def located(data: Path) -> str:
    """The URL of the broker, for the user that may publish and read; empty while there is none."""
    address = embedded.locate(data)
    assert address is None or address.user == "publish"
    return "" if address is None else address.url


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
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
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
            assert await page.locator("#items .text").all_text_contents() == ["written meanwhile", "missed"]
            # Resumed, not loaded again; only an outcome that was known before the stream stood makes it look.
            loads, outcomes = ([url for url in asked if part in url] for part in ("/todo?", "/push/outcome"))
            assert 1 <= len(loads) <= 1 + len(outcomes)
        finally:
            await browser.close()


ITEMS = 500
KILLS = 20


async def add_surely(client: httpx.AsyncClient, item: str) -> None:
    """Post an item until it is accepted, with one key, so that it is added once."""
    key = {"Idempotency-Key": f"key of {item}"}
    while True:
        with suppress(httpx.TransportError):
            if (await client.post("/todo", json={"item": item}, headers=key)).status_code == 202:
                return
        await asyncio.sleep(0.2)


async def texts(page: Page) -> list[str]:
    """What the page shows as saved; all of it."""
    more = page.locator("#more")
    if await more.is_visible():
        await more.click()
    return sorted(await page.locator("#items > li[data-state=saved] .text").all_text_contents())


@pytest.mark.browser
@pytest.mark.timeout(400)
async def test_twenty_kills_of_the_web_process_cost_no_tab_an_item(tmp_path: Path, chromium: str) -> None:
    """kill -9 of the web process twenty times while five hundred items are added through it: at the end every tab, of
    two browsers, shows exactly the database's content, none missing, none double, without a reload."""
    port = free_port()
    async with system(tmp_path) as s, client_of(port) as client, async_playwright() as playwright:
        web = await s.web(port)
        await s.workers()
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            contexts = [await browser.new_context() for _ in range(2)]
            pages = [await context.new_page() for context in contexts for _ in range(2)]
            for page in pages:
                await page.goto(f"http://127.0.0.1:{port}/")
                await expect(page.locator("#connection")).to_have_text("Live", timeout=20_000)
                await page.evaluate("window.neverLeft = true")
            wanted = [f"item {n}" for n in range(ITEMS)]
            left = iter(wanted)

            async def adding() -> None:
                for item in left:
                    await add_surely(client, item)
                    await asyncio.sleep(0.05)  # over the whole time of the kills

            adders = [asyncio.create_task(adding()) for _ in range(4)]
            for _ in range(KILLS):
                await kill(web)
                web = await s.web(port)
            await asyncio.gather(*adders)
            await eventually(lambda: has(client, *wanted), within=60)
            stored = sorted(await listed(client))
            assert stored == sorted(wanted)
            for page in pages:
                await eventually(lambda page=page: same(page, stored), within=60)  # type: ignore[misc]
                await expect(page.locator("#items > li")).to_have_count(ITEMS)
                assert await page.evaluate("window.neverLeft === true")
        finally:
            await browser.close()


async def same(page: Page, stored: list[str]) -> bool:
    return await texts(page) == stored
