"""The page of the reference application in a real browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, BrowserContext, Page, Request, Route, async_playwright, expect

from todo_app import add, eventually, free_port, listed, poisoned, running, served, todo

pytestmark = pytest.mark.browser

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


class Visitor:
    """A browser window on the application, and everything that went wrong in it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.places: list[str] = []
        """From where on each stream was asked for; empty for a first one."""

    async def open(self, path: str = "/") -> Page:
        page = await self.context.new_page()
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", lambda said: self.problems.append(f"{said.type}: {said.text}"))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", self._note)
        page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url} {request.failure}"))
        await page.goto(self.url + path)
        await live(page)
        # Gone with a reload: tests look whether it is still there.
        await page.evaluate("window.neverLeft = true")
        return page

    def _note(self, request: Request) -> None:
        self.requests.append(request.url)
        if request.url.endswith("/push/"):
            self.places.append(request.headers.get("last-event-id", ""))


@asynccontextmanager
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        try:
            yield started
        finally:
            await started.close()


@asynccontextmanager
async def visitor(chromium: str, url: Any, **options: Any) -> AsyncIterator[Visitor]:
    async with browser(chromium) as started:
        context = await started.new_context(**options)
        context.set_default_timeout(20_000)
        yield Visitor(context, str(url).rstrip("/"))


async def live(page: Page) -> None:
    await expect(page.locator("#connection")).to_have_text("Live", timeout=20_000)


def row(page: Page, text: str) -> Any:
    """The rows with exactly this text."""
    return page.locator("#items > li", has=page.locator(".text", has_text=re.compile(f"^{re.escape(text)}$")))


async def shows(page: Page, *texts: str) -> None:
    """Wait until the list is exactly this, all saved, from the top."""
    await expect(page.locator("#items .text")).to_have_text(list(texts), timeout=20_000)
    await expect(page.locator("#items > li:not([data-state=saved])")).to_have_count(0, timeout=20_000)


async def write(page: Page, text: str) -> None:
    await page.get_by_label("What needs doing?").fill(text)
    await page.keyboard.press("Enter")


async def stayed(page: Page) -> bool:
    return bool(await page.evaluate("window.neverLeft === true"))


async def test_an_item_is_pending_at_once_and_confirmed_by_push(tmp_path: Path, chromium: str) -> None:
    """While no handler runs the row waits, queued; when one comes the row is confirmed without a reload."""
    async with running(tmp_path, workers=False) as (app, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        await expect(page.get_by_text("Nothing to do.")).to_be_visible()
        await write(page, "milk")
        await expect(row(page, "milk").locator(".state")).to_have_text("Queued")
        await expect(page.locator("#count")).to_have_text("0 items, 1 on the way")
        assert await listed(client) == []
        await app.bus.work()
        await shows(page, "milk")
        await expect(row(page, "milk").locator("time")).to_be_visible()
        await expect(page.locator("#count")).to_have_text("1 item")
        await expect(page.locator("#spoken")).to_have_text("Saved: milk")
        assert await stayed(page)
        assert v.problems == []


async def test_an_empty_list_is_told_of_when_it_is_known(tmp_path: Path, chromium: str) -> None:
    """As long as the list has not come, the page does not say that there is nothing to do, live or not."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        known = asyncio.Event()

        async def hold(route: Route) -> None:
            await known.wait()
            await route.continue_()

        await v.context.route("**/todo?limit=*", hold)
        page = await v.open()
        await expect(page.locator("#count")).to_have_text("Loading the list")
        assert not await page.get_by_text("Nothing to do.").is_visible()
        known.set()
        await expect(page.get_by_text("Nothing to do.")).to_be_visible()
        await expect(page.locator("#count")).to_have_text("0 items")


async def test_other_windows_see_it_too(tmp_path: Path, chromium: str) -> None:
    """An item added in one window, or by a program, appears once in the others, and in one opened later."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        one, other = await v.open(), await v.open()
        await write(one, "milk")
        await shows(other, "milk")
        await add(client, "bread")
        await shows(other, "bread", "milk")
        await shows(one, "bread", "milk")
        await shows(await v.open(), "bread", "milk")
        assert await stayed(one)
        assert await stayed(other)


async def test_the_list_is_there_after_a_reload(tmp_path: Path, chromium: str) -> None:
    """The page shows what the database has, newest first."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        for text in ("one", "two", "three"):
            await write(page, text)
            await expect(row(page, text)).to_have_attribute("data-state", "saved")
        await page.reload()
        await shows(page, "three", "two", "one")


async def test_a_mutation_shows_with_a_note(tmp_path: Path, chromium: str) -> None:
    """The text changes in place, and a note says what it was."""
    async with running(tmp_path, mutate=True) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        await write(page, "milk")
        await shows(page, "Write a nice review for Learn Docker in a Month of Lunches :)")
        await expect(page.locator(".note")).to_have_text("Changed by a handler. It was: milk")
        await expect(page.locator(".note")).to_be_visible()


PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    '"><script src=https://evil.example/x.js></script>',
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href=javascript:alert(1)>x</a>",
    "<style>*{display:none}</style>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content=0;url=https://evil.example>",
    "</li></ul><h1>gone</h1>",
    "{{constructor.constructor('alert(1)')()}}",
    "${alert(1)}",
    "javascript:alert(1)",
    "&lt;b&gt;&amp;&quot;&#x27;",
    "data: x",
    "event: reset",
)


async def test_no_text_becomes_part_of_the_page(tmp_path: Path, chromium: str) -> None:
    """Each payload shows as the text it is, pushed and loaded; nothing runs, nothing is even blocked."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        await write(page, PAYLOADS[0])
        for payload in PAYLOADS[1:]:
            await add(client, payload)
            await expect(row(page, payload)).to_have_count(1)
        await shows(page, *reversed(PAYLOADS))
        loaded = await v.open()
        await shows(loaded, *reversed(PAYLOADS))
        assert await loaded.locator("main :is(script, img, svg, iframe, a, style, base, meta, h1)").count() == 0
        assert v.problems == []


async def test_the_policy_stops_what_would_get_in(tmp_path: Path, chromium: str) -> None:
    """Were a text ever written as HTML, the content security policy would stop its script and its style."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        await page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x: onerror=\"window.owned = 1\">')"
        )
        await page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'owned = 1'}))"
        )
        await eventually(lambda: sum("Content Security Policy" in problem for problem in v.problems) >= 2)
        assert await page.evaluate("typeof window.owned") == "undefined"


async def test_everything_comes_from_this_server(tmp_path: Path, chromium: str) -> None:
    """Opening the page and adding an item makes no foreign, no failed and no rejected request."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        rejected: list[str] = []
        v.context.on("response", lambda r: rejected.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page = await v.open()
        await write(page, "milk")
        await shows(page, "milk")
        assert [url for url in v.requests if not url.startswith((v.url, "data:"))] == []
        assert rejected == v.problems == []


async def test_a_lost_answer_adds_no_second_item(tmp_path: Path, chromium: str) -> None:
    """When the request arrived and its answer did not, the page asks again with the same key: one row, one item."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        keys: list[str | None] = []

        async def lose_the_first_answer(route: Route) -> None:
            if route.request.method != "POST":
                return await route.continue_()
            keys.append(route.request.headers.get("idempotency-key"))
            if len(keys) > 1:
                return await route.continue_()
            await route.fetch()
            return await route.abort()

        await page.route("**/todo*", lose_the_first_answer)
        await write(page, "milk")
        await eventually(lambda: len(keys) == 2)
        await add(client, "last")
        await shows(page, "last", "milk")
        assert len(set(keys)) == 1
        assert await listed(client) == ["last", "milk"]


async def test_a_bad_item_is_said_beside_the_field(tmp_path: Path, chromium: str) -> None:
    """Blank and too long texts are not sent; a refusal by the server gives the text back; assistive tools are told."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        field, alert = page.get_by_label("What needs doing?"), page.get_by_role("alert")
        await write(page, "   ")
        await expect(alert).to_have_text("Write what needs doing first.")
        await expect(field).to_have_attribute("aria-invalid", "true")
        await write(page, "x" * 257)
        await expect(alert).to_have_text("That is 257 characters; there is room for 256.")
        await expect(page.locator("#length")).to_have_text("257 / 256")
        await write(page, "a\0b")
        await expect(alert).to_contain_text("NUL")
        await expect(field).to_have_value("a\0b")
        await write(page, "🦉" * 256)
        await shows(page, "🦉" * 256)
        await expect(alert).to_have_text("")
        await expect(field).to_have_attribute("aria-invalid", "false")


async def test_the_keyboard_is_enough(tmp_path: Path, chromium: str) -> None:
    """The field has the focus and keeps it; Tab reaches every control, each visibly focused; Enter and Space work."""
    async with running(tmp_path) as (app, client), visitor(chromium, client.base_url) as v:
        async with app.database.async_session.begin() as db:
            db.add_all(app.database.Item(item=str(n), date_added=datetime.now(UTC)) for n in range(1, 451))
        page = await v.open()
        await expect(page.locator("#items > li")).to_have_count(200)
        await page.keyboard.type("milk")
        await page.keyboard.press("Enter")
        await expect(row(page, "milk")).to_have_attribute("data-state", "saved")
        await page.keyboard.type("bread")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name="Add")).to_be_focused()
        await page.keyboard.press("Space")
        await expect(row(page, "bread")).to_have_attribute("data-state", "saved")
        await expect(page.locator("#item")).to_be_focused()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Tab")
        more = page.get_by_role("button", name="Show older items")
        await expect(more).to_be_focused()
        assert await more.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
        await page.keyboard.press("Enter")
        await expect(page.locator("#items > li")).to_have_count(402)
        await page.keyboard.press("Enter")
        await expect(page.locator("#items > li")).to_have_count(452)
        await expect(more).to_be_hidden()
        texts = await page.locator("#items .text").all_text_contents()
        assert texts == ["bread", "milk", *(str(n) for n in range(450, 0, -1))]


async def test_it_fits_a_phone(tmp_path: Path, chromium: str) -> None:
    """On a narrow screen nothing scrolls sideways, however long the words, and controls are large enough to touch."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url, **PHONE) as v:
        page = await v.open()
        for text in ("x" * 256, "a normal line that is a little longer than the screen is wide", "🦉" * 100, "שלום"):
            await add(client, text)
            await expect(row(page, text)).to_have_count(1)
        await write(page, "y" * 256)
        await expect(row(page, "y" * 256)).to_have_attribute("data-state", "saved")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        cut = "[...document.querySelectorAll('.text')].filter((it) => it.scrollWidth > it.clientWidth).length"
        assert await page.evaluate(cut) == 0
        for control in (page.locator("#item"), page.get_by_role("button", name="Add")):
            box = await control.bounding_box()
            assert box is not None
            assert box["height"] >= 44
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360


CONTRAST = """
([text, ground]) => {
  const rgb = (element, name) => getComputedStyle(element)[name].match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = (color) => color
    .map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const [one, other] = [luminance(rgb(document.querySelector(text), "color")),
    luminance(rgb(document.querySelector(ground), "backgroundColor"))].sort((a, b) => b - a);
  return (one + 0.05) / (other + 0.05);
}
"""
READ = {
    "h1": "body",
    "#count": "body",
    "#connection": "body",
    "footer p": "body",
    "label": "main",
    "#problem": "main",
    ".text": "main",
    ".state": "main",
    "time": "main",
    "#item": "#item",
    "form button": "form button",
}


async def test_light_and_dark_follow_the_system_and_can_be_read(tmp_path: Path, chromium: str) -> None:
    """Each scheme has colours of its own, and every text has the contrast of WCAG AA (4.5 to 1) on what it lies on."""
    async with running(tmp_path, workers=False) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        await write(page, "milk")
        await expect(row(page, "milk").locator(".state")).to_have_text("Queued")
        grounds = {}
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            grounds[scheme] = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            contrasts = {text: await page.evaluate(CONTRAST, [text, ground]) for text, ground in READ.items()}
            assert {text: found for text, found in contrasts.items() if found < 4.5} == {}, scheme
        assert grounds["light"] != grounds["dark"]


async def test_a_page_finds_its_way_back_and_shows_what_it_missed(tmp_path: Path, chromium: str) -> None:
    """The server goes away under an open page and loses its log; when it is back, so is the page, with new items."""
    port = free_port()
    async with (
        todo(tmp_path) as app,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        browser(chromium) as started,
    ):
        v = Visitor(await started.new_context(), str(client.base_url))
        async with served(app.web.create_app(workers=True), port):
            page = await v.open()
            await write(page, "before")
            await shows(page, "before")
        await expect(page.locator("#connection")).to_have_text("Reconnecting")
        async with app.database.async_session.begin() as db:
            db.add(app.database.Item(item="missed", date_added=datetime.now(UTC)))
        await write(page, "written meanwhile")
        await expect(row(page, "written meanwhile").locator(".state")).to_have_text("Trying again")
        async with served(app.web.create_app(workers=True), port):
            await live(page)
            await expect(page.locator("#items > li[data-state=saved]")).to_have_count(3)
            assert sorted(await page.locator("#items .text").all_text_contents()) == [
                "before",
                "missed",
                "written meanwhile",
            ]
            assert sorted(await listed(client)) == ["before", "missed", "written meanwhile"]
            assert await stayed(page)


HIDE = """hidden => {
  Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_twenty_windows_share_one_stream(tmp_path: Path, chromium: str) -> None:
    """Browsers allow six connections to a server; twenty windows load, are live and hear of each item."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        pages = [await v.open() for _ in range(20)]
        assert len(v.places) == 1
        await write(pages[7], "milk")
        await asyncio.gather(*(shows(page, "milk") for page in pages))


async def test_when_the_window_with_the_stream_closes_another_takes_over(tmp_path: Path, chromium: str) -> None:
    """The next window resumes behind the last event heard, and nothing is missed."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        first, second = await v.open(), await v.open()
        await write(first, "milk")
        await shows(second, "milk")
        await first.close()
        await add(client, "bread")
        await shows(second, "bread", "milk")
        [begun, resumed] = v.places
        assert (begun, bool(resumed)) == ("", True)
        assert await stayed(second)


async def test_a_stream_that_ends_is_resumed_at_once(
    tmp_path: Path, chromium: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server ends a stream that has lasted, so that the browser shows that it reads, the page asks for the
    next one behind its place: it stays live, and misses nothing."""
    monkeypatch.setattr("tidings.push.app.LIFETIME", (13.0, 13.0))
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        await page.evaluate(LISTEN)
        await page.wait_for_function("heard.live.includes(true)")
        await write(page, "milk")
        await shows(page, "milk")
        await eventually(lambda: len(v.places) == 2, within=40)
        await write(page, "bread")
        await shows(page, "bread", "milk")
        assert v.places[1] != ""
        assert await page.evaluate("heard.live") == [True]
        assert len(await page.evaluate("heard.exact")) == 2
        assert await stayed(page)


async def test_a_hidden_window_holds_no_stream_and_catches_up(tmp_path: Path, chromium: str) -> None:
    """A window that nobody looks at closes its stream; seen again it shows what it missed."""
    async with running(tmp_path) as (_, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        async with page.expect_event("requestfailed", lambda request: "/push" in request.url):
            await page.evaluate(HIDE, True)
        await add(client, "milk")
        await eventually(lambda: listed(client))
        assert await page.locator("#items > li").count() == 0
        await page.evaluate(HIDE, False)
        await shows(page, "milk")
        assert await stayed(page)


async def test_a_poisoned_item_turns_red_and_green_after_a_redrive(
    tmp_path: Path, chromium: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row says that it failed, by which handler and why, in every browser and after a reload; put back, it is saved
    without a reload, and its neighbours were never held up."""
    monkeypatch.setenv("TIDINGS_RETRY", "attempts=2,first=0.1,most=0.1")
    async with running(tmp_path) as (app, client), browser(chromium) as started:
        url = str(client.base_url).rstrip("/")
        one, other = [Visitor(await started.new_context(), url) for _ in range(2)]
        page, elsewhere = await one.open(), await other.open()
        async with poisoned(app):
            await write(page, "poison")
            await eventually(lambda: app.bus.engine.dead_letters("save-handler"))
        await write(page, "milk")
        pages = [page, elsewhere, await other.open()]
        for each in pages:
            await expect(row(each, "milk")).to_have_attribute("data-state", "saved", timeout=20_000)
            await expect(row(each, "poison")).to_have_attribute("data-state", "failed", timeout=20_000)
            await expect(row(each, "poison").locator(".state")).to_have_text("Not saved")
            why = row(each, "poison").locator(".why")
            await expect(why).to_contain_text("save-handler: the handler failed 2 times, at last with IntegrityError")
            assert "please" not in str(await why.text_content())
            assert await why.evaluate("it => getComputedStyle(it).color") != await each.evaluate(
                "getComputedStyle(document.body).color"
            )
        await elsewhere.reload()
        await expect(row(elsewhere, "poison")).to_have_attribute("data-state", "failed", timeout=20_000)
        assert await app.bus.engine.redrive(await app.bus.engine.dead_letters("save-handler")) == 1
        for each in pages:
            await expect(row(each, "poison")).to_have_attribute("data-state", "saved", timeout=20_000)
            await expect(row(each, "poison").locator(".why")).to_be_hidden()
            await expect(each.locator("#items > li")).to_have_count(2)
        assert await stayed(page)
        assert one.problems == []


async def test_two_browsers_see_the_same_at_any_moment(tmp_path: Path, chromium: str) -> None:
    """An item waits in both browsers, and in one that is reloaded meanwhile, and is saved in all of them."""
    async with running(tmp_path, workers=False) as (app, client), browser(chromium) as started:
        url = str(client.base_url).rstrip("/")
        page, other = [await Visitor(await started.new_context(), url).open() for _ in range(2)]
        await write(page, "milk")
        for each in (page, other):
            await expect(row(each, "milk").locator(".state")).to_have_text("Queued", timeout=20_000)
        await page.reload()
        await expect(row(page, "milk").locator(".state")).to_have_text("Queued", timeout=20_000)
        await app.bus.work()
        for each in (page, other):
            await shows(each, "milk")


async def test_a_browser_that_was_offline_catches_up(
    tmp_path: Path, chromium: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off, a page shows that; connected again it has what was saved, changed and given up meanwhile."""
    monkeypatch.setenv("TIDINGS_RETRY", "attempts=1")
    async with running(tmp_path) as (app, client), browser(chromium) as started:
        v = Visitor(await started.new_context(), str(client.base_url).rstrip("/"))
        page = await v.open()
        await write(page, "before")
        await shows(page, "before")
        await v.context.set_offline(True)
        await page.evaluate("dispatchEvent(new Event('online'))")  # cuts the stream, as the loss of the network would
        await expect(page.locator("#connection")).to_have_text("Reconnecting", timeout=20_000)
        async with poisoned(app):
            for item in ("poison", "bread", "butter"):
                await add(client, item)
            await eventually(lambda: app.bus.engine.dead_letters("save-handler"))
        await eventually(lambda: three(client))
        await v.context.set_offline(False)
        await expect(page.locator("#connection")).to_have_text("Live", timeout=60_000)
        await expect(row(page, "poison")).to_have_attribute("data-state", "failed", timeout=20_000)
        for item in ("before", "bread", "butter"):
            await expect(row(page, item)).to_have_attribute("data-state", "saved", timeout=20_000)
        await expect(page.locator("#items > li")).to_have_count(4)
        assert await stayed(page)


async def three(client: httpx.AsyncClient) -> bool:
    return len(await listed(client)) == 3


LISTEN = """async () => {
  const { connect } = await import("/push/tidings.js");
  const push = connect();
  window.heard = { exact: [], every: [], none: [], live: [], stopped: [] };
  const note = (name) => ({ data, correlation }, subject) => heard[name].push([subject, data.item, correlation]);
  push.on("events.todo.itemsaved", note("exact"));
  push.on("events.*.>", note("every"));
  push.on("events.todo", note("none"));
  push.on("live", (live) => heard.live.push(live));
  const stop = push.on("events.>", (event) => (heard.stopped.push(event.subject), stop()));
  window.push = push;
}"""
PUBLISH = """async (item) => {
  const response = await fetch("/todo", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ item }),
  });
  const { id, position } = await response.json();
  const { state, reason, event } = await push.outcome(id, position);
  return { id, state, reason, item: event?.data.item };
}"""


async def test_the_module_listens_by_subject_and_follows_outcomes(
    tmp_path: Path, chromium: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subjects with wildcards, an end to the listening, and the outcome of what was published: with its event, with the
    reason of a failure, or by asking when the event was heard before anybody wanted to know."""
    monkeypatch.setenv("TIDINGS_RETRY", "attempts=1")
    async with running(tmp_path) as (app, client), visitor(chromium, client.base_url) as v:
        page = await v.open()
        await page.evaluate(LISTEN)
        await page.wait_for_function("heard.live.includes(true)")
        saved = await page.evaluate(PUBLISH, "milk")
        assert saved["state"] == "done"
        async with poisoned(app):
            failed = await page.evaluate(PUBLISH, "poison")
        assert (failed["state"], failed["reason"]) == ("dead", "handler_error")
        asked = await page.evaluate("([id, position]) => push.outcome(id, position)", [saved["id"], 1])
        assert asked["state"] == "done"
        await page.wait_for_function("heard.every.length === 3")
        heard = await page.evaluate("heard")
        assert heard["exact"] == [["events.todo.itemsaved", "milk", saved["id"]]]
        assert [(subject, item) for subject, item, _ in heard["every"]] == [
            ("events.todo.newitem", "milk"),
            ("events.todo.itemsaved", "milk"),
            ("events.todo.newitem", "poison"),
        ]
        assert heard["none"] == []
        assert heard["stopped"] == ["events.todo.newitem"]
        assert len(v.places) == 1
