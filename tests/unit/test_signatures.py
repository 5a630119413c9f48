"""Signatures as newcomers write them: each works, or is told what to write instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Optional

import pytest

import tidings
from tidings.testing import TestBus


class New(tidings.Event, subject="events.todo.new"):
    item: str = "milk"


class Saved(tidings.Event, subject="events.todo.saved"):
    id: int = 0


class Count(tidings.Request[int], subject="todo.count"):
    pass


class Client:
    pass


class Depends:
    """As FastAPI has one."""

    def __init__(self, factory: Callable[..., Any]) -> None:
        self.factory = factory


async def handled(bus: tidings.Bus) -> None:
    """Start, and handle one event without a dead letter."""
    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert await t.dead_letters() == []


async def mistake(bus: tidings.Bus) -> str:
    """What the bus says when it starts."""
    with pytest.raises(tidings.ConfigError) as caught:
        async with TestBus(bus):
            pass
    return str(caught.value)


async def test_a_default_is_used_when_nothing_provides_the_parameter() -> None:
    """Plain values and classes without a provider keep their default, annotated or not, also in a reply handler."""
    bus, seen = tidings.Bus("todo"), []

    @bus.on(New, group="g")
    async def handle(new: New, limit: int = 5, client: Client | None = None, *, loud=False) -> None:  # type: ignore[no-untyped-def]
        seen.append((new.item, limit, client, loud))

    @bus.reply(Count)
    async def count(count: Count, limit: int = 7) -> int:
        return limit

    await handled(bus)
    assert seen == [("milk", 5, None, False)]
    async with TestBus(bus):
        assert await bus.request(Count()) == 7


async def test_a_default_gives_way_to_what_is_provided() -> None:
    """A parameter with a default is given its event, its message, or what a provider makes; `| None` changes nothing.
    An event that the handler does not listen to keeps the default."""
    bus, seen = tidings.Bus("todo"), []
    client = Client()

    @bus.provide
    def make() -> Client:
        return client

    @bus.on(New, group="g")
    async def handle(
        new: New | None = None,
        message: tidings.Message | None = None,
        given: Client | None = None,
        other: Saved = Saved(9),  # noqa: B008
    ) -> None:
        assert message is not None
        seen.append((new, message.subject, given, other))

    await handled(bus)
    assert seen == [(New(), "events.todo.new", client, Saved(9))]


async def test_an_optional_event_is_the_event() -> None:
    """`Optional[New]` is always a `New`: there is no message without an event."""
    bus, seen = tidings.Bus("todo"), []

    @bus.on(New, group="g")
    async def handle(new: Optional[New]) -> None:  # noqa: UP045
        seen.append(new)

    await handled(bus)
    assert seen == [New()]


async def test_a_class_inside_a_function_is_found() -> None:
    """With annotations that are only text, the classes that a decorator names are found wherever they were made."""
    bus, seen = tidings.Bus("todo"), []

    class Local(tidings.Event, subject="events.todo.local"):
        pass

    class Other(tidings.Event, subject="events.todo.other"):
        pass

    @bus.on(Local, group="g")
    async def handle(event: Local) -> None:
        seen.append(event)

    async with TestBus(bus) as t:
        await bus.publish(Local())
        await t.settle()
    assert seen == [Local()]

    @bus.on(New, group="h")
    async def follows(new: New) -> Other | None: ...

    assert "'Other' cannot be found" in (said := await mistake(bus))
    assert "at the module's top (not inside a function" in said


async def test_a_field_in_the_events_place_is_refused() -> None:
    """Whoever writes the fields of an event as parameters learns at the start where they are."""
    bus = tidings.Bus("todo")

    @bus.on(Saved, group="g")
    async def handle(id: int) -> None: ...

    said = await mistake(bus)
    assert "handle: id: int: what comes is a whole Saved, and cannot be read as int" in said
    assert "take it as event: Saved, and read event.id" in said


async def test_fastapis_depends_is_told_of_providers() -> None:
    """A default that FastAPI would resolve is not handed to the handler as it is."""
    bus = tidings.Bus("todo")

    @bus.on(New, group="g")
    async def handle(new: New, client: Client = Depends(Client)) -> None: ...  # type: ignore[assignment]  # noqa: B008

    assert "bus.provide(factory), and write client: ItsType without a default" in await mistake(bus)


async def test_methods() -> None:
    """A static method and the method of an object are handlers; one that is decorated where it is written, or a class
    method, is told how."""
    bus, seen = tidings.Bus("todo"), []

    class Service:
        @bus.on(New, group="static")
        @staticmethod
        async def alone(new: New) -> None:
            seen.append("static")

        async def handle(self, new: New) -> None:
            seen.append("bound")

    bus.on(New, group="bound")(Service().handle)
    await handled(bus)
    assert sorted(seen) == ["bound", "static"]

    with pytest.raises(tidings.ConfigError, match=r"once the class is there, as in bus\.on\(…\)\(Service\.handle\)"):

        class Early:
            @bus.on(New, group="early")
            @classmethod
            async def handle(cls, new: New) -> None: ...

    class Inside:
        @bus.on(New, group="inside")
        async def handle(self, new: New) -> None: ...

    assert "self needs an object" in (said := await mistake(bus))
    assert "bus.on(…)(service.handle)" in said


def test_what_is_no_function_is_told_what_to_write() -> None:
    """Partials, objects that can be called, and classes are told what does work."""
    bus = tidings.Bus("todo")

    class Service:
        async def __call__(self, new: New) -> None: ...

    async def two(number: int, new: New) -> None: ...

    for thing in (Service(), Service):
        with pytest.raises(tidings.ConfigError, match=r"is no function: register a method of an object"):
            bus.on(New, group="g")(thing)
    with pytest.raises(tidings.ConfigError, match=r"an async def that calls it, .* bus\.provide\(factory\)"):
        bus.on(New, group="g")(functools.partial(two, 1))


def test_a_reply_names_a_request_class() -> None:
    """A subject, or no parentheses at all, in `@bus.reply` is told what belongs there."""
    bus = tidings.Bus("todo")
    for thing in ("todo.count", test_what_is_no_function_is_told_what_to_write):
        with pytest.raises(tidings.ConfigError, match="name one, in the parentheses of a decorator"):
            bus.reply(thing)  # type: ignore[arg-type]


async def test_a_wrapper_that_hides_the_parameters_is_told_of_wraps() -> None:
    """A decorator whose inner function takes `*args` hides what the handler takes."""

    def logged(function: Any) -> Any:
        async def inner(*args: Any, **more: Any) -> Any:
            return await function(*args, **more)

        return inner

    bus = tidings.Bus("todo")

    @bus.on(New, group="g")
    @logged
    async def handle(new: New) -> None: ...

    assert "functools.wraps" in await mistake(bus)


async def test_a_coroutine_that_nobody_awaits_is_told() -> None:
    """A plain wrapper around an `async def` returns a coroutine: the asker learns what to write, and the event is a
    dead letter that says so."""

    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def inner(*args: Any, **more: Any) -> Any:
            return function(*args, **more)

        return inner

    bus = tidings.Bus("todo")

    @bus.reply(Count)
    @logged
    async def count(count: Count) -> int:
        return 1

    @bus.on(New, group="g")
    @logged
    async def handle(new: New) -> None: ...

    async with TestBus(bus) as t:
        with pytest.raises(tidings.RemoteError, match="returned a coroutine, which nobody awaits: write async def"):
            await bus.request(Count())
        await bus.publish(New())
        await t.settle()
        (letter,) = await t.dead_letters()
    assert "which nobody awaits" in letter.failure.message
