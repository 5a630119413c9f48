"""The reference application's API over a real socket: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from todo_app import add, eventually, listed, running

LONGEST = 256
JSON = {"Content-Type": "application/json"}


async def saved(client: httpx.AsyncClient, *items: str) -> None:
    await eventually(lambda: holds(client, set(items)))


async def holds(client: httpx.AsyncClient, items: set[str]) -> bool:
    return items <= set(await listed(client))


async def test_an_item_is_accepted_saved_and_listed(tmp_path: Path) -> None:
    """`POST /todo` answers 202 with the message's id; soon after `GET /todo` has the item, with its date in UTC."""
    async with running(tmp_path) as (_, client):
        before = datetime.now(UTC) - timedelta(seconds=1)
        answer = await client.post("/todo", json={"item": "  milk  "})
        assert answer.status_code == 202
        assert answer.json()["id"]
        await saved(client, "milk")
        [row] = (await client.get("/todo")).json()
        assert row.keys() == {"id", "item", "date_added"}
        added = datetime.fromisoformat(row["date_added"])
        assert added.utcoffset() == timedelta(0)
        assert before < added < datetime.now(UTC) + timedelta(seconds=1)


@pytest.mark.parametrize("item", ["x", "x" * LONGEST, "🦉" * LONGEST, "<b>&amp;", "'; DROP TABLE", "שלום", "a\tb"])
async def test_every_text_up_to_256_characters_is_an_item(tmp_path: Path, item: str) -> None:
    """1 to 256 characters of any script come back exactly."""
    async with running(tmp_path) as (_, client):
        await add(client, item)
        await saved(client, item)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"", "not JSON", id="no body"),
        pytest.param(b"milk", "not JSON", id="not JSON"),
        pytest.param(b"{'item': 'milk'}", "not JSON", id="Python"),
        pytest.param(b'{"item": "milk"', "not JSON", id="cut off"),
        pytest.param(b'{"item": NaN}', "not JSON", id="NaN"),
        pytest.param(b'{"item": "\xff\xfe"}', "UTF-8", id="bad UTF-8"),
        pytest.param('{"item": "milk"}'.encode("utf-16"), "UTF-8", id="UTF-16"),
        pytest.param(b'{"item": "a\\ud800"}', "surrogates", id="lone surrogate"),
        pytest.param(b'{"item": "a\\u0000b"}', "NUL", id="NUL"),
        pytest.param(b'{"x": ' + b"[" * 15_000 + b"]" * 1, "not JSON", id="deep"),
        pytest.param(b'["milk"]', "array", id="array"),
        pytest.param(b'"milk"', "str", id="string"),
        pytest.param(b"null", "null", id="null"),
        pytest.param(b"{}", "item", id="no item"),
        pytest.param(b'{"Item": "milk"}', "item", id="other name"),
        pytest.param(b'{"item": 5}', "int", id="number"),
        pytest.param(b'{"item": null}', "null", id="null item"),
        pytest.param(b'{"item": ["milk"]}', "array", id="list item"),
        pytest.param(b'{"item": ""}', "empty", id="empty"),
        pytest.param(b'{"item": " \\t\\n\\u3000 "}', "empty", id="blank"),
        pytest.param(b'{"item": "\\u200b\\u2003"}', "empty", id="blank to the eye"),
        pytest.param(b'{"item": "%s"}' % (b"x" * 257), "257", id="257 characters"),
    ],
)
async def test_a_bad_item_is_refused_and_says_why(tmp_path: Path, body: bytes, says: str) -> None:
    """Each bad body gets 400 with a JSON error that names what is wrong, and nothing is published."""
    async with running(tmp_path) as (app, client):
        answer = await client.post("/todo", content=body, headers=JSON)
        assert answer.status_code == 400
        assert says in answer.json()["error"]
        assert (await app.bus.engine.stats()).messages == 0


@pytest.mark.parametrize("body", [b"[" * 50_000, b'{"item": "%s"}' % (b"x" * 2_000_000)], ids=["brackets", "2 MB"])
async def test_a_large_body_is_refused(tmp_path: Path, body: bytes) -> None:
    """More than 16 KiB gets 413, which the client can read although it was still sending."""
    async with running(tmp_path) as (_, client):
        answer = await client.post("/todo", content=body, headers=JSON)
        assert (answer.status_code, "16,384" in answer.json()["error"]) == (413, True)
        assert (await client.get("/todo")).json() == []


async def test_a_large_body_is_not_waited_for(tmp_path: Path) -> None:
    """413 comes as soon as 16 KiB are passed, with most of the announced body still unsent."""
    async with running(tmp_path) as (_, client):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = "POST /todo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2000000"
        writer.write(f"{head}\r\n\r\n".encode() + b"x" * 20_000)
        try:
            async with asyncio.timeout(10):
                assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        finally:
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_what_a_foreign_form_could_send_is_refused(tmp_path: Path, kind: str | None) -> None:
    """Anything but JSON gets 415 with the header to send: browsers let foreign sites post the other types unasked."""
    async with running(tmp_path) as (_, client):
        answer = await client.post("/todo", content=b'{"item": "milk"}', headers={"Content-Type": kind} if kind else {})
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]


async def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    """A newer client may send more than we know, and say its character set."""
    async with running(tmp_path) as (_, client):
        body = json.dumps({"item": "milk", "color": {"of": ["white"]}})
        answer = await client.post("/todo", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
        assert answer.status_code == 202
        await saved(client, "milk")


async def test_a_repeat_with_the_same_key_adds_once(tmp_path: Path) -> None:
    """A client that got no answer repeats its request with its `Idempotency-Key`, and one item comes of it."""
    async with running(tmp_path) as (_, client):
        key = {"Idempotency-Key": "mine"}
        answers = [await client.post("/todo", json={"item": "milk"}, headers=key) for _ in range(3)]
        assert [(answer.status_code, answer.json()["id"]) for answer in answers] == [(202, "mine")] * 3
        await add(client, "last")
        await saved(client, "milk", "last")
        assert await listed(client) == ["last", "milk"]


@pytest.mark.parametrize("key", ["k" * 201, "a\tb"])
async def test_a_bad_key_is_refused(tmp_path: Path, key: str) -> None:
    """A key that cannot be an id gets 400, and nothing is published."""
    async with running(tmp_path) as (app, client):
        answer = await client.post("/todo", json={"item": "milk"}, headers={"Idempotency-Key": key})
        assert (answer.status_code, "id" in answer.json()["error"]) == (400, True)
        assert (await app.bus.engine.stats()).messages == 0


async def test_the_list_comes_in_pages(tmp_path: Path) -> None:
    """Newest first; `limit` and `before` give every item once; without them all come at once."""
    async with running(tmp_path) as (app, client):
        async with app.database.async_session.begin() as db:
            now = datetime.now(UTC)
            db.add_all(app.database.Item(item=str(n), date_added=now) for n in range(1, 251))
        everything = [str(n) for n in range(250, 0, -1)]
        assert await listed(client) == everything
        pages, before = [], "999999999"
        while page := (await client.get("/todo", params={"limit": 100, "before": before})).json():
            pages.append([row["item"] for row in page])
            before = page[-1]["id"]
        assert [len(page) for page in pages] == [100, 100, 50]
        assert [item for page in pages for item in page] == everything


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=", "before=1.5", "before=٣", "limit=9999999999"]
)
async def test_a_bad_page_is_refused(tmp_path: Path, query: str) -> None:
    """A limit or place that is no number gets 400 naming it."""
    async with running(tmp_path) as (_, client):
        answer = await client.get(f"/todo?{query}")
        assert answer.status_code == 400
        assert query.partition("=")[0] in answer.json()["error"]


async def test_what_is_not_there_says_so_in_json(tmp_path: Path) -> None:
    """Unknown paths and methods get 404 and 405 as JSON; files outside `static` are not served."""
    async with running(tmp_path) as (_, client):
        for method, path, status in [
            ("GET", "/nothing", 404),
            ("DELETE", "/todo", 405),
            ("GET", "/static/../web.py", 404),
            ("GET", "/static/%2e%2e/web.py", 404),
        ]:
            answer = await client.request(method, path)
            assert (answer.status_code, bool(answer.json()["error"])) == (status, True), path


async def test_without_the_engine_it_says_try_again(tmp_path: Path) -> None:
    """With the engine gone, adding, `/push` and `/ready` answer 503 with `Retry-After`; the list can still be read."""
    async with running(tmp_path) as (app, client):
        await add(client, "milk")
        await saved(client, "milk")
        assert (await client.get("/ready")).status_code == 200
        await app.bus.engine.close()
        post = client.post("/todo", json={"item": "bread"})
        for answer in await asyncio.gather(post, client.get("/push/"), client.get("/ready")):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert "try again" in answer.json()["error"]
        assert await listed(client) == ["milk"]


async def test_without_the_database_it_says_try_again(tmp_path: Path) -> None:
    """With the database gone, items are still accepted, because they are only messages; the list answers 503."""
    async with running(tmp_path, workers=False) as (app, client):
        await app.database.engine.dispose()
        (tmp_path / "todo.sqlite3").unlink()
        (tmp_path / "todo.sqlite3").mkdir()
        await add(client, "milk")
        for path in ("/todo", "/ready"):
            answer = await client.get(path)
            assert (answer.status_code, "try again" in answer.json()["error"]) == (503, True)


async def test_every_answer_carries_the_security_headers(tmp_path: Path) -> None:
    """The page, its files, data, streams and errors: none may be framed, sniffed or run a script from elsewhere."""
    async with running(tmp_path) as (_, client):
        for path in ("/", "/static/todo.js", "/todo", "/nothing", "/push"):
            async with client.stream("GET", path) as answer:
                policy = answer.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert "frame-ancestors 'none'" in policy


async def test_a_hundred_at_once(tmp_path: Path) -> None:
    """A hundred clients adding at the same time get a hundred ids and a hundred rows."""
    async with running(tmp_path) as (_, client):
        ids = await asyncio.gather(*(add(client, f"item {n}") for n in range(100)))
        assert len(set(ids)) == 100
        await saved(client, *(f"item {n}" for n in range(100)))
        assert len(await listed(client)) == 100
