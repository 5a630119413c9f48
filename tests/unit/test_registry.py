"""What a handler's decorator and signature mean, and every mistake that is found before the first message."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import tidings
from tidings.handlers import Handler, HandlerOptions, filters_of
from tidings.registry import Parameter, Plan, Registry

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTheChecker


class New(tidings.Event, subject="events.todo.new"):
    item: str


class Saved(tidings.Event, subject="events.todo.saved"):
    id: int


class Same(tidings.Event, subject="events.todo.new"):
    pass


class Count(tidings.Request[int], subject="todo.count"):
    pass


class Bare(msgspec.Struct):
    x: int


class Untold(msgspec.Struct):
    x: int


class Client:
    pass


@dataclass
class Data:
    x: int


class Model(BaseModel):
    x: int


def plan(function: Callable[..., Any], *what: Any, providers: tuple[Callable[..., Any], ...] = ()) -> Plan:
    registry = Registry(("events.>",))
    for provider in providers:
        registry.add_provider(provider)
    return registry.plan(Handler(function, what or (New,), HandlerOptions("g")), [])


def mistake(function: Callable[..., Any], *what: Any, **more: Any) -> str:
    with pytest.raises(tidings.ConfigError) as caught:
        plan(function, *what, **more)
    assert function.__name__ in str(caught.value), "the text names the handler"
    return str(caught.value)


# What is registered


def test_filters_come_from_classes_and_subjects() -> None:
    """Classes stand for their subjects; doubles and what another one covers are left out."""
    assert filters_of([New, "events.todo.new", "events.other.*"]) == ["events.todo.new", "events.other.*"]
    assert filters_of([New, "events.>"]) == ["events.>"]


@pytest.mark.parametrize("what", [[], [Untold], [Client], [3], ["events.new*"], ["events.>.x"], [""]])
def test_nonsense_is_refused(what: list[Any]) -> None:
    """Nothing at all, classes without a subject, and partial wildcards raise at the decorator."""
    with pytest.raises(tidings.ConfigError):
        filters_of(what)


def test_a_group_has_one_handler() -> None:
    """A second handler under the same name would split the messages between them."""
    bus = tidings.Bus("todo")

    @bus.on(New, group="save")
    async def one(new: New) -> None: ...

    with pytest.raises(tidings.ConfigError, match=r"'save' already has the handler .*one.*its own copy"):

        @bus.on(Saved, group="save")
        async def two(saved: Saved) -> None: ...


@pytest.mark.parametrize("group", ["", "a b", "a.b", "a>b", "ü", "x" * 65])
def test_group_names_are_plain(group: str) -> None:
    """A group's name becomes part of names in every engine."""
    bus = tidings.Bus("todo")
    with pytest.raises(tidings.ConfigError, match="a group name has"):

        @bus.on(New, group=group)
        async def handle(new: New) -> None: ...


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": 2.5},
        {"batch": "500"},
        {"retry": 3},
        {"timeout": 0},
        {"timeout": -1.0},
        {"timeout": float("nan")},
        {"timeout": "soon"},
        {"start": "yesterday"},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    """The error comes from the decorator and names the option."""
    bus = tidings.Bus("todo")
    with pytest.raises(tidings.ConfigError, match=f"handle: {next(iter(options))}="):

        @bus.on(New, group="g", **options)
        async def handle(new: New) -> None: ...


def test_a_responder_has_options_that_can_work() -> None:
    """The time limit of `@bus.reply` is looked at like that of `@bus.on`."""
    bus = tidings.Bus("todo")
    with pytest.raises(tidings.ConfigError, match="count: timeout='soon' is not a duration"):

        @bus.reply(Count, timeout="soon")
        async def count(request: Count) -> int:
            return 1


def test_one_class_per_subject() -> None:
    """Two classes for one subject cannot both be what arrives."""
    bus = tidings.Bus("todo")

    @bus.on(New, group="one")
    async def one(new: New) -> None: ...

    with pytest.raises(tidings.ConfigError, match=r"already belongs to .*New"):

        @bus.on(Same, group="two")
        async def two(same: Same) -> None: ...


def test_a_handler_outside_the_roots_is_refused() -> None:
    """Nothing durable ever comes on such a subject: the handler would wait for ever, in silence."""
    bus = tidings.Bus("todo", roots=("events.>", "audit.>"))
    with pytest.raises(tidings.ConfigError, match=r"'todo\.new' is outside .*@bus\.listen"):

        @bus.on("todo.new", group="g")
        async def handle(message: tidings.Message) -> None: ...

    @bus.on("audit.login", ">", group="fine")
    async def fine(message: tidings.Message) -> None: ...


def test_requests_are_no_events() -> None:
    """A request given to `on`, or an event given to `reply`, names the other decorator."""
    bus = tidings.Bus("todo", roots=(">",))
    with pytest.raises(tidings.ConfigError, match=r"Count is a request.*@bus\.reply"):

        @bus.on(Count, group="g")
        async def handle(count: Count) -> None: ...

    with pytest.raises(tidings.ConfigError, match=r"New is an event.*@bus\.on"):
        bus.reply(New)


def test_a_request_has_one_responder() -> None:
    """Two handlers of one bus for a request are a mistake."""
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def one(count: Count) -> int:
        return 1

    with pytest.raises(tidings.ConfigError, match=r"already answered by .*one"):

        @bus.reply(Count)
        async def two(count: Count) -> int:
            return 2


def test_the_decorated_function_stays_a_plain_function() -> None:
    """A handler is called in a unit test like any other function."""
    bus = tidings.Bus("todo")

    @bus.on(New, group="g")
    def handle(new: New) -> str:
        return new.item

    assert handle(New("x")) == "x"


def test_only_functions_are_handlers() -> None:
    """Partials and callable objects have no name to show and hide what they take; methods are fine."""

    class Service:
        async def handle(self, new: New) -> None: ...

        async def __call__(self, new: New) -> None: ...

    assert Handler(Service().handle, [New], HandlerOptions("g")).name.endswith("Service.handle")
    for thing in (functools.partial(Service().handle), Service()):
        with pytest.raises(tidings.ConfigError, match="is no function"):
            Handler(thing, [New], HandlerOptions("g"))


# What parameters mean


def test_parameters_are_given_by_annotation() -> None:
    """Event, message and what a provider makes, in any order, under any name."""

    def client() -> Client:
        return Client()

    async def handle(c: Client, m: tidings.Message[New], e: New) -> Saved | None: ...

    found = plan(handle, providers=(client,))
    assert found.parameters == (
        Parameter("c", "provided", Client),
        Parameter("m", "message", New),
        Parameter("e", "event", New),
    )
    assert (found.is_async, found.transactional, found.emits) == (True, False, ("events.todo.saved",))


@pytest.mark.parametrize("annotation", [dict, list, str, int, Any, Bare, Data, Model, dict[str, int], Bare | None])
def test_what_a_plain_body_may_become(annotation: Any) -> None:
    """Without a class for the subject the body may be JSON values or any class that a codec knows."""

    async def handle(body: Any) -> None: ...

    handle.__annotations__["body"] = annotation
    assert plan(handle, "events.other").parameters == (Parameter("body", "event", annotation),)


def test_no_parameters_are_fine() -> None:
    """A handler that only wants to be called takes nothing."""

    async def handle() -> None: ...

    assert plan(handle).parameters == ()


def test_a_batch_names_what_follows() -> None:
    """The second argument of a batch handler's `Batch` is what it emits."""

    async def many(batch: tidings.Batch[New, Saved | None]) -> None:
        pass

    async def quiet(batch: tidings.Batch[New]) -> None:
        pass

    assert plan(many).emits == ("events.todo.saved",)
    assert plan(quiet).emits == ()


def test_emits_are_the_events_of_the_return_annotation() -> None:
    """Unions and lists are looked through; what is no event is left out."""

    async def one(new: New) -> list[Saved | New] | Saved | None: ...

    async def none(new: New) -> None: ...

    assert set(plan(one).emits) == {"events.todo.saved", "events.todo.new"}
    assert plan(none).emits == ()


def test_an_annotation_is_needed() -> None:
    """A parameter without an annotation says nothing."""

    async def handle(new) -> None: ...  # type: ignore[no-untyped-def]

    assert "'new' needs an annotation" in mistake(handle)


def test_a_name_only_the_type_checker_knows_is_explained() -> None:
    """Annotations are resolved at the start: imports under TYPE_CHECKING are the usual mistake."""

    async def handle(new: OnlyForTheChecker) -> None: ...

    assert "'OnlyForTheChecker' cannot be found" in mistake(handle)
    assert "TYPE_CHECKING" in mistake(handle)


def test_a_misspelt_attribute_is_explained() -> None:
    """`module.Mistake` is the same mistake, and no bare AttributeError."""

    async def handle(new: tidings.NoSuchThing) -> None: ...  # type: ignore[name-defined]

    assert "'NoSuchThing' cannot be found" in mistake(handle)


def test_two_events_are_one_too_many() -> None:
    """One of them must come from somewhere else, and the text says from where; two classes come one at a time."""

    async def handle(new: New, times: int) -> None: ...

    async def two(new: New, saved: Saved) -> None: ...

    async def neither(one: dict[str, Any], other: list[Any]) -> None: ...

    assert "nothing gives times: int beside the event new: New. Read it from the event" in mistake(handle)
    assert "bus.provide" in mistake(handle)
    assert "write new: New | Saved" in mistake(two, New, Saved)
    assert "which of one, other is the event" in mistake(neither, "events.other")


def test_stars_and_slashes_cannot_be_given() -> None:
    """Parameters are given by name; what has none is refused at the start and not with the first message."""

    async def args(*new: New) -> None: ...

    async def kwargs(**new: New) -> None: ...

    async def slash(new: New, /) -> None: ...

    assert "*new" in mistake(args)
    assert "*new" in mistake(kwargs)
    assert "leave out the '/'" in mistake(slash)


def test_unknown_classes_need_a_provider() -> None:
    """A class of the application's own is offered with `bus.provide`."""

    async def handle(client: Client, new: New) -> None: ...

    assert "bus.provide" in mistake(handle)


@pytest.mark.parametrize("session", [AsyncSession, Session])
def test_a_session_needs_a_database(session: type) -> None:
    """A session in a handler of a bus without a database names the option of the bus."""

    async def handle(new: New, db: Any) -> None: ...

    handle.__annotations__["db"] = session
    assert "Bus(sessions=…)" in mistake(handle)


def test_generators_are_no_handlers() -> None:
    """A handler with `yield` would never run; it returns a list."""

    async def one(new: New) -> AsyncIterator[Saved]:
        yield Saved(1)

    def two(new: New) -> Iterator[Saved]:
        yield Saved(1)

    assert "no yield" in mistake(one)
    assert "no yield" in mistake(two)


def test_the_parameter_must_be_what_is_listened_to() -> None:
    """A handler of one event that takes another one is found at the start, not by dead letters."""

    async def other(saved: Saved) -> None: ...

    async def message(m: tidings.Message[Saved]) -> None: ...

    async def half(new: New) -> None: ...

    async def both(event: New | Saved) -> None: ...

    assert "does not listen to 'events.todo.saved'" in mistake(other, New)
    assert "does not listen to 'events.todo.saved'" in mistake(message, New)
    assert "also listens to Saved" in mistake(half, New, Saved)
    assert plan(both, New, Saved).parameters[0].kind == "event"
    assert plan(both, "events.todo.*").parameters[0].kind == "event"


def test_a_type_without_a_codec_is_found_at_the_start() -> None:
    """Two structs without a tag cannot be told apart, and that is no message's fault."""

    async def handle(body: Bare | Untold) -> None: ...

    with pytest.raises(tidings.ConfigError, match="tagged"):
        plan(handle, "events.other")


# Providers


def test_a_provider_says_what_it_makes() -> None:
    """Functions, coroutines and generators: the annotation is looked through."""

    def one() -> Client: ...  # type: ignore[empty-body]

    async def two() -> Client: ...  # type: ignore[empty-body]

    async def three() -> AsyncIterator[Client]:
        yield Client()

    def four() -> Iterator[Client]:
        yield Client()

    for provider in (one, two, three, four):
        registry = Registry()
        registry.add_provider(provider)
        assert registry.providers == {Client: provider}


def test_a_provider_that_cannot_work_is_refused() -> None:
    """No annotation, arguments, or a second one for the same type raise when it is offered."""

    def silent():  # type: ignore[no-untyped-def]
        return Client()

    def needy(url: str) -> Client: ...  # type: ignore[empty-body]

    def fine(url: str = "x") -> Client: ...  # type: ignore[empty-body]

    registry = Registry()
    with pytest.raises(tidings.ConfigError, match="needs a return annotation"):
        registry.add_provider(silent)
    with pytest.raises(tidings.ConfigError, match="called without arguments"):
        registry.add_provider(needy)
    registry.add_provider(fine)
    with pytest.raises(tidings.ConfigError, match=r"already has a provider: .*fine"):
        registry.add_provider(fine)
