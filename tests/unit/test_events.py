"""Event and request classes: how they get their subject, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

import tidings
from tidings.events import EventSpec, require_spec, spec_of


class Saved(tidings.Event, subject="events.todo.saved", key="id"):
    id: int
    item: str = ""


class SavedLater(Saved, subject="events.todo.savedlater"):
    more: bool = False


class Count(tidings.Request[int], subject="todo.count"):
    pass


class Request(tidings.Request[str], subject="todo.named"):
    """A request that is called like its base."""


def spec(cls: object) -> EventSpec:
    found = spec_of(cls)
    assert found is not None
    return found


def test_an_event_knows_its_subject_and_key() -> None:
    """What stands behind the class name is what the bus uses."""
    assert (spec(Saved).subject, spec(Saved).key, spec(Saved).version) == ("events.todo.saved", "id", 1)
    assert not spec(Saved).is_request


def test_events_are_frozen_and_equal_by_value() -> None:
    """An event is a value: nobody changes it on its way."""
    with pytest.raises(AttributeError):
        Saved(1).id = 2
    assert Saved(1) == Saved(id=1)


def test_the_type_names_the_version_from_two_on() -> None:
    """`ce-type` is the subject, with `.v2` behind it for version 2."""

    class Second(tidings.Event, subject="events.x", version=2):
        pass

    assert spec(Saved).ce_type == "events.todo.saved"
    assert spec(Second).ce_type == "events.x.v2"


def test_a_subclass_does_not_inherit_the_subject() -> None:
    """Two classes never share a subject by accident."""

    class Derived(Saved):
        pass

    assert spec_of(Derived) is None
    assert spec(SavedLater).subject == "events.todo.savedlater"
    with pytest.raises(tidings.ConfigError, match=r"Derived has no subject.*tidings\.Event.*@tidings\.event"):
        require_spec(Derived)


def test_a_request_knows_its_reply_type() -> None:
    """The type in brackets is the type of the answer."""
    assert (spec(Count).reply, spec(Count).is_request) == (int, True)


def test_a_request_may_be_called_request() -> None:
    """A class is a request by its base, whatever its own name is."""
    assert (spec(Request).reply, spec(Request).is_request) == (str, True)


def test_a_request_without_a_reply_type_is_refused() -> None:
    """Without brackets nobody would know what to decode the answer to."""
    with pytest.raises(tidings.ConfigError, match=r"Silent must say what it is answered with"):

        class Silent(tidings.Request, subject="todo.silent"):  # type: ignore[type-arg]
            pass


@pytest.mark.parametrize("subject", ["", "events..x", "events.*", "events.>", "events.ü", "a b", "$SYS.x", "x" * 256])
def test_a_bad_subject_is_a_mistake_in_the_program(subject: str) -> None:
    """A subject that cannot be published to raises `ConfigError` naming the class when the class is made."""
    with pytest.raises(tidings.ConfigError, match="Broken"):

        class Broken(tidings.Event, subject=subject):
            pass


def test_a_key_must_be_a_field() -> None:
    """A misspelt key would silently give up the order."""
    with pytest.raises(tidings.ConfigError, match="key='idd' is not a field"):

        class Broken(tidings.Event, subject="events.x", key="idd"):
            id: int


def test_a_key_may_be_an_inherited_field() -> None:
    """The key's field may stand in a base class."""

    class Derived(Saved, subject="events.derived", key="id"):
        pass

    assert spec(Derived).key == "id"


def test_versions_count_from_one() -> None:
    """Version 0 would look like none at all."""
    with pytest.raises(tidings.ConfigError, match="count from 1"):

        class Broken(tidings.Event, subject="events.x", version=0):
            pass


def test_own_classes_are_decorated() -> None:
    """Pydantic models and dataclasses become events without another base class."""

    @tidings.event("events.model", key="id")
    class Model(BaseModel):
        id: int

    @tidings.event("events.data")
    @dataclass
    class Data:
        id: int

    assert spec(Model).type is Model
    assert spec(Model).key == "id"
    assert spec(Data).subject == "events.data"


def test_a_decorator_that_makes_a_new_class_keeps_the_event() -> None:
    """`@dataclass(slots=True)` above `@tidings.event` replaces the class: the event is the new one."""

    @dataclass(slots=True)
    @tidings.event("events.slots")
    class Slots:
        id: int

    assert spec(Slots).type is Slots


def test_own_classes_can_be_requests() -> None:
    """`@tidings.request` gives any class a subject and a type of answer."""

    @tidings.request("todo.search", reply=list[str])
    @dataclass
    class Search:
        text: str

    assert (spec(Search).reply, spec(Search).is_request) == (list[str], True)


@pytest.mark.parametrize("thing", [None, 3, "events.x", Saved(1), dict, Any, msgspec.Struct])
def test_other_things_have_no_spec(thing: object) -> None:
    """Only classes that were given a subject have one; instances do not."""
    assert spec_of(thing) is None
