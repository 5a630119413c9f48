"""What a handler says that it returns, held against what can become of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NoReturn

import pytest
from pydantic import BaseModel

import tidings
from tidings.testing import TestBus


class New(tidings.Event, subject="events.todo.new"):
    item: str = ""


class Saved(tidings.Event, subject="events.todo.saved"):
    id: int = 0


class Count(tidings.Request[int], subject="todo.count"):
    pass


class Row(BaseModel):
    id: int


class Base(BaseModel):
    pass


@tidings.event("events.todo.derived")
class Derived(Base):
    pass


class Client:
    pass


class Rows(tidings.Request[list[Row]], subject="todo.rows"):
    pass


class Unsayable(tidings.Request[list[Client]], subject="todo.unsayable"):
    pass


async def mistake(bus: tidings.Bus) -> str:
    """What the bus says when it starts."""
    with pytest.raises(tidings.ConfigError) as caught:
        async with TestBus(bus):
            pass
    return str(caught.value)


def handling(annotation: Any) -> tidings.Bus:
    bus = tidings.Bus("todo")

    async def handle(new: New) -> Any: ...

    handle.__annotations__["return"] = annotation
    bus.on(New, group="g")(handle)
    return bus


def answering(request: type, annotation: Any) -> tidings.Bus:
    bus = tidings.Bus("todo")

    async def respond(message: tidings.Message) -> Any: ...

    respond.__annotations__["return"] = annotation
    bus.reply(request)(respond)
    return bus


@pytest.mark.parametrize(
    "annotation",
    [str, dict, dict[str, Any], Row, Client, list[str], Saved | str | None, set[Saved], Iterator[Saved], bool],
)
async def test_what_is_no_event_does_not_follow(annotation: Any) -> None:
    """A handler that says it returns something else than events would fail at every message: the bus does not start,
    and names the handler, what is wrong, and what to do."""
    said = await mistake(handling(annotation))
    assert "handle is annotated to return " in said
    assert "is none. Return an event, a list of events or None; to answer somebody, use @bus.reply" in said


@pytest.mark.parametrize(
    "annotation",
    [
        *(None, Any, object, NoReturn, list, tidings.Event, Base, Derived, list[Base] | None),
        *(Saved, Saved | None, list[Saved | New], tuple[Saved, ...], Sequence[Saved]),
    ],
)
async def test_what_can_be_events_may_follow(annotation: Any) -> None:
    """Events, lists of them, their base classes, and what says nothing: the bus starts."""
    async with TestBus(handling(annotation)):
        pass


async def test_a_request_does_not_follow() -> None:
    """A handler that says it returns a request is told how to ask."""
    assert "Count, which is a request" in await mistake(handling(Count))
    assert "await bus.request(…)" in await mistake(handling(list[Count]))


async def test_nothing_follows_from_a_whole_batch() -> None:
    """A batch handler that says it returns events is told of `follow`."""
    bus = tidings.Bus("todo")

    @bus.on(New, group="g")
    async def many(batch: tidings.Batch[New]) -> list[Saved]:
        return []

    assert "batch.follow(i, event), and write -> None" in await mistake(bus)


@pytest.mark.parametrize(
    ("request_type", "annotation", "told"),
    [
        (Count, str, "return str, but Count declares int as its answer"),
        (Count, None, "return None, but Count declares int"),
        (Count, int | None, "return int | None, but Count declares int"),
        (Rows, Row, "return Row, but Rows declares list["),
        (Count, Client, "return Client, and JSON has nothing for Client: make int of it"),
        (Rows, list[Client], "JSON has nothing for Client"),
        (Unsayable, None, "Unsayable is to be answered with list["),
    ],
)
async def test_an_answer_that_contradicts_its_request_is_refused(
    request_type: type, annotation: Any, told: str
) -> None:
    """A reply handler whose annotation cannot be the declared answer does not start, nor does one whose answer nobody
    could read."""
    assert told in await mistake(answering(request_type, annotation if annotation is not None else type(None)))


@pytest.mark.parametrize(
    ("request_type", "annotation"),
    [(Count, int), (Count, Any), (Rows, list[Row]), (Rows, Sequence[Row]), (Rows, list[dict[str, int]])],
)
async def test_an_answer_that_fits_is_let_through(request_type: type, annotation: Any) -> None:
    """What can be read as the declared answer starts, whatever its class."""
    async with TestBus(answering(request_type, annotation)):
        pass


async def test_the_items_of_a_stream_are_held_against_the_request() -> None:
    """Of a handler that yields, what it says it yields is the answer."""
    good, bad = tidings.Bus("todo"), tidings.Bus("todo")

    @good.reply(Count)
    async def numbers(count: Count) -> AsyncIterator[int]:
        yield 1

    @bad.reply(Count)
    async def words(count: Count) -> AsyncIterator[str]:
        yield "one"

    async with TestBus(good):
        assert [number async for number in good.stream(Count())] == [1]
    assert "words is annotated to yield str, but Count declares int" in await mistake(bad)


async def test_a_plain_generator_does_not_stream() -> None:
    """A `def` that yields is told what a stream is made of."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    def numbers(count: Count) -> Iterator[int]:
        yield 1

    assert "an `async def` that yields" in await mistake(bus)
