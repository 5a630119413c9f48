"""The push stream of the reference application, read from its raw lines over a real socket."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from todo_app import Event, Stream, add, eventually, free_port, listed, pushed, running, served, todo

SAVED = "events.todo.itemsaved"


async def opened(stream: Stream) -> Event:
    """The first event of a stream, which is always `ready`."""
    event = await stream.next()
    assert event.name == "ready"
    return event


async def items(stream: Stream, count: int) -> list[str]:
    """The texts of the next saved items."""
    events = [await stream.next() for _ in range(count)]
    assert {event.name for event in events} == {SAVED}
    return [event.data["data"]["item"] for event in events]


async def test_a_saved_item_is_pushed_to_every_browser(tmp_path: Path) -> None:
    """Two open streams both get the event, which names the request that it answers."""
    async with running(tmp_path) as (_, client), pushed(client) as one, pushed(client) as other:
        assert (await opened(one)).data == (await opened(other)).data == {"resumed": False}
        id = await add(client, "milk")
        first = await one.next()
        assert first == await other.next()
        assert first.name == first.data["subject"] == SAVED
        assert first.data["correlation"] == first.data["causation"] == id
        assert first.data["data"] == {"id": 1, "item": "milk"}
        assert datetime.fromisoformat(first.data["time"]).tzinfo == UTC


async def test_a_mutation_is_pushed(tmp_path: Path) -> None:
    """With the mutating handler on, the page hears of the saved item, then of its new text."""
    async with running(tmp_path, mutate=True) as (_, client), pushed(client) as stream:
        await opened(stream)
        id = await add(client, "milk")
        saved, mutated = await stream.next(), await stream.next()
        assert [saved.name, mutated.name] == [SAVED, "events.todo.itemmutated"]
        assert saved.data["correlation"] == mutated.data["correlation"] == id
        assert mutated.data["data"]["item"] == "Write a nice review for Learn Docker in a Month of Lunches :)"


async def test_each_item_is_told_as_wanted_and_then_as_saved(tmp_path: Path) -> None:
    """Every browser hears of an item when somebody wants it, whoever that was, and once more when it is saved."""
    async with running(tmp_path) as (_, client), pushed(client, without=None) as stream:
        await opened(stream)
        ids = [await add(client, f"item {n}") for n in range(20)]
        events = [await stream.next() for _ in range(40)]
        wanted = [event.data["id"] for event in events if event.name == "events.todo.newitem"]
        saved = [event.data["correlation"] for event in events if event.name == SAVED]
        assert wanted == saved == ids


@pytest.mark.parametrize("by_query", [False, True], ids=["header", "parameter"])
async def test_a_browser_that_comes_back_gets_what_it_missed(tmp_path: Path, by_query: bool) -> None:
    """`Last-Event-ID`, as header or parameter, resumes behind that event: nothing is missing, nothing comes twice."""
    async with running(tmp_path) as (_, client):
        async with pushed(client) as stream:
            await opened(stream)
            await add(client, "seen")
            last = (await stream.next()).id
        missed = [f"missed {n}" for n in range(5)]
        for item in missed:
            await add(client, item)
        await eventually(lambda: all_listed(client, missed))
        async with pushed(client, last, by_query=by_query) as stream:
            event = await opened(stream)
            assert (event.data, event.id) == ({"resumed": True}, last)
            await add(client, "live")
            assert await items(stream, 6) == [*missed, "live"]


async def all_listed(client: httpx.AsyncClient, wanted: list[str]) -> bool:
    return set(wanted) <= set(await listed(client))


async def test_every_cut_of_the_stream_resumes(tmp_path: Path) -> None:
    """A browser that is cut off after each single event, while items keep coming, has seen each exactly once."""
    async with running(tmp_path) as (_, client):
        wanted = [f"item {n}" for n in range(30)]

        async def adding() -> None:
            for item in wanted:
                await add(client, item)

        seen: list[str] = []
        last: str | None = None
        async with pushed(client) as stream:
            last = (await opened(stream)).id
        task = asyncio.create_task(adding())
        while len(seen) < len(wanted):
            async with pushed(client, last) as stream:
                await opened(stream)
                event = await stream.next()
                seen.append(event.data["data"]["item"])
                last = event.id
        await task
        assert seen == wanted


HOSTILE = ["0", "7", "-1", "9" * 40, "deadbeef-1", "deadbeef", "-", "nan", "1; DROP", "%00", "x" * 5000]


@pytest.mark.parametrize("last", HOSTILE)
async def test_a_place_that_is_not_of_this_log_resets(tmp_path: Path, last: str) -> None:
    """Whatever a client gives as its last event: not resumable means `reset`, and from then on the stream is live."""
    async with running(tmp_path) as (_, client), pushed(client, last) as stream:
        event = await opened(stream)
        assert (event.data, event.id) == ({"resumed": False}, None)
        reset = await stream.next()
        assert reset.name == "reset"
        await add(client, "milk")
        assert await items(stream, 1) == ["milk"]
        async with pushed(client, reset.id) as again:
            assert (await opened(again)).data == {"resumed": True}
            assert await items(again, 1) == ["milk"]


async def test_a_place_beyond_the_end_resets(tmp_path: Path) -> None:
    """A position that this log has not reached cannot be resumed: it has lost its end."""
    async with running(tmp_path) as (_, client), pushed(client) as stream:
        end = (await opened(stream)).id
        assert end is not None
        log, _, position = end.partition("-")
        async with pushed(client, f"{log}-{int(position) + 1}") as other:
            await opened(other)
            assert (await other.next()).name == "reset"


async def test_another_log_at_the_same_place_resets(tmp_path: Path) -> None:
    """After the data were lost, positions begin again: the browser is told so, and not given other events instead."""
    port = free_port()
    async with todo(tmp_path) as app, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        async with served(app.web.create_app(workers=True), port), pushed(client) as stream:
            await opened(stream)
            await add(client, "before")
            last = (await stream.next()).id
        async with served(app.web.create_app(workers=True), port):
            for n in range(3):
                await add(client, f"after {n}")
            async with pushed(client, last) as stream:
                await opened(stream)
                assert (await stream.next()).name == "reset"


async def test_a_stream_opens_before_its_first_event(tmp_path: Path) -> None:
    """The answer's head and `ready` come at once, so that a page can load its list behind it; proxies do not buffer."""
    async with running(tmp_path) as (_, client), pushed(client) as stream:
        await opened(stream)
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.response.headers["cache-control"] == "no-store"
        assert stream.response.headers["x-accel-buffering"] == "no"


async def test_the_server_stops_with_open_streams(tmp_path: Path) -> None:
    """A server that is told to stop ends its streams, and is gone although nobody hung up."""
    async with todo(tmp_path) as app, httpx.AsyncClient() as client:
        async with asyncio.timeout(15):
            async with served(app.web.create_app(workers=True)) as url:
                client.base_url = httpx.URL(url)
                streams = [client.send(client.build_request("GET", "/push/"), stream=True) for _ in range(5)]
                answers = await asyncio.gather(*streams)
        assert [answer.status_code for answer in answers] == [200] * 5
        for answer in answers:
            await answer.aclose()
