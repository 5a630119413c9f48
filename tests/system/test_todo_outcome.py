"""What has become of an item: waited for, asked for, pushed; over the reference application's API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from todo_app import Stream, add, eventually, listed, poisoned, pushed, running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_RETRY", "attempts=2,first=0.05,most=0.05")


async def asked(client: httpx.AsyncClient, location: str) -> dict[str, Any]:
    answer = await client.get(location)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def reaches(client: httpx.AsyncClient, location: str, state: str) -> dict[str, Any]:
    """What the location says once it has come to that."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        found.update(await asked(client, location))
        return bool(found["state"] == state)

    await eventually(there)
    return found


async def outcome_of(stream: Stream, state: str) -> dict[str, Any]:
    """The next pushed outcome with that state."""
    while (event := await stream.next()).name != "outcome" or event.data["state"] != state:
        pass
    assert event.id is None
    found: dict[str, Any] = event.data
    return found


async def test_who_prefers_to_wait_gets_the_saved_item(tmp_path: Path) -> None:
    """`Prefer: wait=5` answers 200 with the item as it is in the database, and says that it has waited."""
    async with running(tmp_path) as (_, client):
        answer = await client.post("/todo", json={"item": "milk"}, headers={"Prefer": "respond-async, wait=5"})
        assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=5")
        assert answer.json()["item"] == {"id": 1, "item": "milk"}
        assert [row["id"] for row in (await client.get("/todo")).json()] == [1]


async def test_an_item_that_takes_longer_has_a_place_that_tells(tmp_path: Path) -> None:
    """With nobody at work the wait ends with 202; its `Location` says `working`, and later has the saved item."""
    async with running(tmp_path, workers=False) as (app, client):
        answer = await client.post("/todo", json={"item": "milk"}, headers={"Prefer": "wait=1"})
        assert answer.status_code == 202
        location = answer.headers["location"]
        assert await asked(client, location) == {"id": answer.json()["id"], "state": "working"}
        [pending] = (await client.get("/todo/pending")).json()
        assert (pending["id"], pending["item"], pending["state"]) == (answer.json()["id"], "milk", "working")
        await app.bus.work()
        assert (await reaches(client, location, "done"))["item"] == {"id": 1, "item": "milk"}
        assert (await client.get("/todo/pending")).json() == []


async def test_a_poisoned_item_is_told_as_failed_and_as_saved_after_a_redrive(tmp_path: Path) -> None:
    """Every attempt that fails is pushed, and that the last one was the last; the place of the item and the pending
    list say why, without the error's text; after a redrive the saved item is pushed."""
    async with running(tmp_path) as (app, client), pushed(client) as stream:
        assert (await stream.next()).name == "ready"
        async with poisoned(app):
            sent = await client.post("/todo", json={"item": "poison"}, headers={"Prefer": "wait=10"})
            assert sent.status_code == 202
            id = sent.json()["id"]
            retrying, dead = await outcome_of(stream, "retrying"), await outcome_of(stream, "dead")
            assert {retrying["correlation"], dead["correlation"]} == {id}
            assert (dead["group"], dead["attempts"], dead["reason"]) == ("save-handler", 2, "handler_error")
            told = await reaches(client, sent.headers["location"], "dead")
            [pending] = (await client.get("/todo/pending")).json()
            assert (pending["id"], pending["state"], pending["error"]) == (id, "dead", told["error"])
            assert "secret" not in f"{told} {pending} {dead}"
        assert await app.bus.engine.redrive(await app.bus.engine.dead_letters("save-handler")) == 1
        saved = await stream.next()
        assert (saved.name, saved.data["correlation"]) == ("events.todo.itemsaved", id)
        assert (await reaches(client, sent.headers["location"], "done"))["item"]["item"] == "poison"
        assert (await client.get("/todo/pending")).json() == []


async def test_the_endpoint_is_asked_for_an_outcome(tmp_path: Path) -> None:
    """`/push/outcome` says how far an item is; of other messages, wrong places and nonsense it says nothing."""
    async with running(tmp_path) as (app, client):
        sent = (await client.post("/todo", json={"item": "milk"}, headers={"Prefer": "wait=10"})).json()
        answer = (await client.get("/push/outcome", params={"id": sent["id"], "position": sent["position"]})).json()
        assert (answer["state"], answer["correlation"]) == ("done", sent["id"])
        other = await app.bus.publish("events.other", {"x": 1})
        for id, position, status in (
            (other.id, other.position, 404),
            (sent["id"], other.position, 404),
            ("x", sent["position"], 404),
            (sent["id"], 10**15, 404),
            (sent["id"], "9" * 40, 400),
            (sent["id"], "-1", 400),
            ("", "", 400),
        ):
            refused = await client.get("/push/outcome", params={"id": id, "position": position})
            assert refused.status_code == status, (id, position)
        assert (await client.get(f"/todo/requests/{'0' * 30}")).status_code == 404


async def test_the_end_of_a_long_queue_is_pending(tmp_path: Path) -> None:
    """Of many items that wait the newest thousand are listed, in the order in which they were wanted."""
    async with running(tmp_path, workers=False) as (app, client):
        await app.bus.publish_many([app.events.NewItem(item=str(n)) for n in range(1200)])
        assert [row["item"] for row in (await client.get("/todo/pending")).json()] == [str(n) for n in range(200, 1200)]


@pytest.mark.parametrize(
    ("prefer", "status"), [("wait=0", 202), ("wait", 202), ("wait=x", 202), ("wait=-1", 202), ("x; wait=5", 200)]
)
async def test_preferences_that_are_none(tmp_path: Path, prefer: str, status: int) -> None:
    """Only a number of seconds is a wish to wait; anything else is answered at once."""
    async with running(tmp_path) as (_, client):
        answer = await client.post("/todo", json={"item": "milk"}, headers={"Prefer": prefer})
        assert answer.status_code == status


async def test_foreign_hosts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for a host that is not ours gets 421, whatever the path, unless it is named in `TODO_HOSTS`."""
    monkeypatch.setenv("TODO_HOSTS", "todo.example, other.example")
    async with running(tmp_path) as (_, client):
        await add(client, "milk")
        await eventually(lambda: listed(client))
        for host, status in (
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example:80", 421),
            ("", 421),
            ("localhost:99", 200),
            ("[::1]:8000", 200),
            ("TODO.example:443", 200),
        ):
            for path in ("/", "/todo", "/push/tidings.js"):
                answer = await client.get(path, headers={"Host": host})
                assert answer.status_code == status, (host, path)
