"""Requests and replies."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import tidings
from tidings.engine import Reply
from tidings.live import requests
from tidings.testing import TestBus


class Count(tidings.Request[int], subject="todo.count"):
    list_name: str = "all"


class Inside(tidings.Request[int], subject="events.count"):
    pass


class Nothing(tidings.Request[None], subject="todo.nothing"):
    pass


class Saved(tidings.Event, subject="events.saved"):
    n: int = 0


class Item(BaseModel):
    id: int


@tidings.request("todo.search", reply=list[Item])
@dataclass
class Search:
    words: str


class Client:
    pass


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_an_answer_has_the_requests_type() -> None:
    """A question in, a typed answer out, from `async def` and plain `def`."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(question: Count) -> int:
        return len(question.list_name)

    @bus.reply(Search)
    def search(question: Search) -> list[Item]:
        assert threading.current_thread() is not threading.main_thread()
        return [Item(id=len(question.words))]

    async with TestBus(bus):
        assert await bus.request(Count(list_name="four")) == 4
        assert await bus.request(Search("three")) == [Item(id=5)]


async def test_none_is_an_answer() -> None:
    """A request may be answered with nothing but the fact that it was done."""
    bus = tidings.Bus("todo")

    @bus.reply(Nothing)
    async def nothing(_: Nothing) -> None: ...

    async with TestBus(bus):
        await bus.request(Nothing())


async def test_the_responder_sees_who_caused_it() -> None:
    """A request from inside a handler belongs to the chain of its message."""
    bus, seen = tidings.Bus("todo"), []

    @bus.reply(Count)
    async def count(m: tidings.Message[Count]) -> int:
        seen.append((m.correlation_id, m.causation_id, m.source, m.data, m.id))
        await bus.publish(Saved(7))
        return 1

    @bus.on(Saved, group="g")
    async def saved(saved: Saved) -> None:
        if not saved.n:
            await bus.request(Count("x"))

    async with TestBus(bus) as t:
        receipt = await bus.publish(Saved())
        await t.settle()
        published = await t.published()
    assert seen[0][:4] == (receipt.id, receipt.id, "todo", Count("x"))
    assert published[1].causation_id == seen[0][4]
    assert published[1].correlation_id == receipt.id


async def test_nobody_there_is_known_at_once() -> None:
    """Without a responder there is no waiting for the timeout."""
    bus = tidings.Bus("todo")
    async with TestBus(bus) as t:
        with pytest.raises(tidings.NoResponder, match=r"'todo\.count'"):
            await bus.request(Count(), timeout=3600)
        assert t.clock.monotonic() == 0


async def test_no_answer_in_time() -> None:
    """`RequestTimeout` after the asker's time; the late answer reaches nobody and harms nothing."""
    bus, go, asked = tidings.Bus("todo"), asyncio.Event(), []

    @bus.reply(Count)
    async def count(_: Count) -> int:
        asked.append(1)
        await go.wait()
        return len(asked)

    async with TestBus(bus) as t:
        first = asyncio.ensure_future(bus.request(Count(), timeout=2))
        await until(lambda: asked)
        await t.clock.advance(2.1)
        with pytest.raises(tidings.RequestTimeout, match="within 2 s"):
            await first
        go.set()
        assert await bus.request(Count(), timeout=2) == 2


async def test_a_cancelled_question_is_forgotten() -> None:
    """Cancelling leaves the connection fit for the next question, whose answer is its own."""
    bus, go = tidings.Bus("todo"), asyncio.Event()

    @bus.reply(Count)
    async def count(question: Count) -> int:
        await go.wait()
        return len(question.list_name)

    async with TestBus(bus):
        for n in range(20):
            task = asyncio.ensure_future(bus.request(Count("x" * n)))
            for _ in range(n):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        go.set()
        answers = await asyncio.gather(*(bus.request(Count("x" * n)) for n in range(20)))
    assert answers == list(range(20))


async def test_a_responders_error_reaches_the_asker() -> None:
    """Type and text travel, whatever letters they have; the traceback stays in the log."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(question: Count) -> int:
        raise KeyError("größe\n%41 \x00 \ud800")

    async with TestBus(bus):
        with pytest.raises(tidings.RemoteError, match="größe") as caught:
            await bus.request(Count())
    assert caught.value.type == "KeyError"
    assert "%41" in caught.value.message


async def test_a_responder_that_is_cancelled_inside_answers() -> None:
    """A `CancelledError` of the handler's own is an error reply, not silence until the timeout."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(_: Count) -> int:
        raise asyncio.CancelledError

    async with TestBus(bus):
        with pytest.raises(tidings.RemoteError, match=r"CancelledError: .*was cancelled"):
            await bus.request(Count())


async def test_a_responder_that_cancels_its_own_task_answers() -> None:
    """A handler that cancels the task it runs in is an error reply too, and the process goes on answering."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(question: Count) -> int:
        task = asyncio.current_task()
        assert task is not None
        if question.list_name:
            task.cancel()
            await asyncio.sleep(0)
        return 0

    async with TestBus(bus):
        with pytest.raises(tidings.RemoteError, match=r"CancelledError: .*its own task"):
            await bus.request(Count("me"))
        assert await bus.request(Count("")) == 0


async def test_a_responder_that_exits_answers() -> None:
    """`sys.exit` in a responder is an error reply, and the process goes on answering."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(question: Count) -> int:
        if question.list_name:
            sys.exit(question.list_name)
        return 0

    async with TestBus(bus):
        with pytest.raises(tidings.RemoteError, match="SystemExit"):
            await bus.request(Count("enough"))
        assert await bus.request(Count("")) == 0


async def test_a_responder_over_its_time_answers() -> None:
    """The responder's own limit is told to the asker in words."""
    bus, asked = tidings.Bus("todo"), []

    @bus.reply(Count, timeout=3)
    async def count(_: Count) -> int:
        asked.append(1)
        await asyncio.Event().wait()
        return 0

    async with TestBus(bus) as t:
        question = asyncio.ensure_future(bus.request(Count(), timeout=60))
        await until(lambda: asked)
        await t.clock.advance(3.1)
        with pytest.raises(tidings.RemoteError, match=r"TimeoutError: .*still running after 3 s"):
            await question


@pytest.mark.parametrize("body", [b"\xff", b"[]", b'{"list_name": 5}'])
async def test_a_bad_question_is_answered_with_the_reason(body: bytes) -> None:
    """A foreign asker that sends nonsense learns what is wrong."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(_: Count) -> int:
        return 1

    async with TestBus(bus):
        reply = await bus.engine.request("todo.count", body, {}, 5)
    assert reply.headers["tidings-error"] == "DecodeError"


async def test_an_empty_question_is_one_without_fields() -> None:
    """`nats request todo.count ''` from a terminal works."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(question: Count) -> int:
        return len(question.list_name)

    async with TestBus(bus):
        assert (await bus.engine.request("todo.count", b"", {}, 5)).body == b"3"


async def test_an_answer_of_another_type_is_no_answer() -> None:
    """What the responder got wrong is an error for the asker, never a value of another type."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(_: Count) -> int:
        return "three"  # type: ignore[return-value]

    async with TestBus(bus):
        with pytest.raises(tidings.RemoteError, match="Expected `int`"):
            await bus.request(Count())


def test_a_foreign_answer_of_another_type_is_no_answer() -> None:
    """A responder of somebody else's that answers with another type gives a `DecodeError`."""
    with pytest.raises(tidings.DecodeError, match="Expected `int`"):
        requests.answer(Reply(b'"three"', {}), int)


def test_a_foreign_error_is_read() -> None:
    """An error reply without a text is still an error."""
    with pytest.raises(tidings.RemoteError, match="Oops"):
        requests.answer(Reply(b"", {"tidings-error": "Oops"}), int)


async def test_events_are_not_asked_and_requests_not_published() -> None:
    """Each names the other way."""
    bus = tidings.Bus("todo")
    async with TestBus(bus):
        with pytest.raises(tidings.InvalidMessage, match="Saved is an event: publish it"):
            await bus.request(Saved())
        with pytest.raises(tidings.InvalidMessage, match=r"ask with bus\.request"):
            await bus.publish(Count())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Count, "a request is asked, not its class"),
        ("todo.count", r"str is no request: .*tidings\.Request"),
        ({"list_name": "all"}, "dict is no request"),
    ],
)
async def test_what_is_no_request_is_told_what_to_write(asked: Any, told: str) -> None:
    """A class, a subject or a dictionary in a request's place is refused before the wire, whichever way it is asked."""
    bus = tidings.Bus("todo")
    async with TestBus(bus):
        with pytest.raises(tidings.InvalidMessage, match=told):
            await bus.request(asked)
        with pytest.raises(tidings.InvalidMessage, match=told):
            await bus.gather(asked)
        with pytest.raises(tidings.InvalidMessage, match=told):
            await anext(bus.stream(asked))


@pytest.mark.parametrize(("timeout", "text"), [("soon", "write 500ms, 5s"), (None, "seconds, as in timeout=5")])
async def test_a_timeout_is_a_time(timeout: Any, text: str) -> None:
    """What is no time is refused before the question is sent."""
    bus = tidings.Bus("todo")
    async with TestBus(bus):
        with pytest.raises((tidings.InvalidMessage, tidings.ConfigError), match=text):
            await bus.request(Count(), timeout=timeout)
        with pytest.raises(tidings.NoResponder):
            await bus.request(Count(), timeout="5s")


async def test_a_request_inside_the_roots_is_refused() -> None:
    """The engine would store the question as an event, and its receipt would look like the answer."""
    bus = tidings.Bus("todo")

    @bus.reply(Inside)
    async def inside(_: Inside) -> int:
        return 1

    with pytest.raises(tidings.ConfigError, match=r"'events\.count' would be stored as events"):
        async with TestBus(bus):
            pass


async def test_providers_are_closed_after_an_answer() -> None:
    """Also when the responder fails."""
    bus, said = tidings.Bus("todo"), []

    @bus.provide
    async def client() -> AsyncIterator[Client]:
        try:
            yield Client()
        finally:
            said.append("closed")

    @bus.reply(Count)
    async def count(question: Count, client: Client) -> int:
        if question.list_name == "bad":
            raise ValueError
        return 1

    async with TestBus(bus):
        await bus.request(Count())
        with pytest.raises(tidings.RemoteError):
            await bus.request(Count("bad"))
    assert said == ["closed", "closed"]


async def test_a_responders_transaction_is_whole(tmp_path: Path) -> None:
    """It is committed before the answer leaves; with an error, or an answer that cannot be written, nothing is."""
    file = tmp_path / "todo.db"
    sync, engine = create_engine(f"sqlite:///{file}"), create_async_engine(f"sqlite+aiosqlite:///{file}")
    with sync.begin() as connection:
        connection.execute(text("create table item (name text)"))
    bus, refused = tidings.Bus("todo", sessions=async_sessionmaker(engine)), []

    @bus.reply(Count)
    async def count(question: Count, db: AsyncSession) -> int:
        await db.execute(text("insert into item values (:name)"), {"name": question.list_name})
        try:
            await bus.publish(Saved())
        except tidings.PublishInTransaction:
            refused.append(question.list_name)
        if question.list_name == "error":
            raise ValueError
        return object() if question.list_name == "object" else 1  # type: ignore[return-value]

    async with TestBus(bus) as t:
        assert await bus.request(Count("fine")) == 1
        for name in ("error", "object"):
            with pytest.raises(tidings.RemoteError):
                await bus.request(Count(name))
        assert await t.published() == []
    with sync.connect() as connection:
        assert list(connection.execute(text("select name from item")).scalars()) == ["fine"]
    assert refused == ["fine", "error", "object"]
    await engine.dispose()
    sync.dispose()
