"""What a handler says that it returns: events that follow, or the answer to a request.

A return annotation that cannot come true would fail for every message. So it is refused when the bus starts.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any, Final

from .errors import ConfigError
from .events import Event, EventSpec, spec_of
from .handlers import Handler
from .shapes import fits, unwritable

_ITEMS: Final = (AsyncIterator, AsyncGenerator, AsyncIterable)


def emitted(annotation: Any) -> tuple[EventSpec, ...]:
    """Specs of the event classes in a return annotation: `A | B | None`, `list[A]`."""
    if (spec := spec_of(annotation)) is not None:
        return (spec,)
    return tuple(spec for part in typing.get_args(annotation) for spec in emitted(part))


def check_follow_ups(handler: Handler, annotation: Any, *, batched: bool) -> None:
    """Raise `ConfigError` unless what the handler says it returns can follow from its message."""
    if batched and _says_something(annotation):
        raise ConfigError(
            f"{handler.name} is annotated to return {show(annotation)}: a batch handler returns nothing; say "
            "batch.follow(i, event), and write -> None"
        )
    wrong = _no_event(annotation)
    if wrong is None:
        return
    spec = spec_of(wrong)
    if spec is not None:
        raise ConfigError(
            f"{handler.name} is annotated to return {show(wrong)}, which is a request: what a handler returns is "
            "published; ask inside it, with `await bus.request(…)`"
        )
    raise ConfigError(
        f"{handler.name} is annotated to return {show(wrong)}: what a handler returns is published as an event, and "
        f"{show(wrong)} is none. Return an event, a list of events or None; to answer somebody, use @bus.reply"
    )


def check_answer(handler: Handler, annotation: Any, spec: EventSpec) -> None:
    """Raise `ConfigError` unless what the handler says it returns, or yields, can be the answer to its request."""
    streams = inspect.isasyncgenfunction(handler.function)
    request, verb = spec.type.__name__, "yield" if streams else "return"
    if (odd := unwritable(spec.reply)) is not None:
        raise ConfigError(
            f"{request} is to be answered with {show(spec.reply)}, and JSON has nothing for {show(odd)}: declare a "
            "tidings.Event, a dataclass, a Pydantic model or plain values as its answer"
        )
    if streams and typing.get_origin(annotation) in _ITEMS:
        annotation = typing.get_args(annotation)[0]
    if annotation is None:
        return
    if (odd := unwritable(annotation)) is not None:
        raise ConfigError(
            f"{handler.name} is annotated to {verb} {show(annotation)}, and JSON has nothing for {show(odd)}: make "
            f"{show(spec.reply)} of it, which {request} declares as its answer"
        )
    if fits(annotation, spec.reply):
        return
    raise ConfigError(
        f"{handler.name} is annotated to {verb} {show(annotation)}, but {request} declares {show(spec.reply)} as its "
        "answer: whoever asks would get an error instead. Change one of the two"
    )


def show(annotation: Any) -> str:
    """As one would write it."""
    if annotation is types.NoneType:
        return "None"
    plain = isinstance(annotation, type) and not typing.get_args(annotation)
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")


def _no_event(annotation: Any) -> Any:
    """The part of a return annotation that is sure not to be published, or None."""
    if annotation in (None, Any, types.NoneType):
        return None
    if (spec := spec_of(annotation)) is not None:
        return annotation if spec.is_request else None
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType) or (isinstance(origin, type) and _holds_many(origin)):
        parts = typing.get_args(annotation)
        return next((wrong for part in parts if (wrong := _no_event(part)) is not None), None)
    cls = origin or annotation
    # What is no class, such as a type variable, says nothing.
    if not isinstance(cls, type) or _holds_many(cls) or _may_be_event(cls):
        return None
    return annotation


def _says_something(annotation: Any) -> bool:
    """Whether events are returned."""
    return bool(emitted(annotation)) or (typing.get_origin(annotation) or annotation) in (list, tuple)


def _holds_many(cls: type) -> bool:
    """Whether a list or tuple can be one."""
    if getattr(cls, "_is_protocol", False):
        return True
    return issubclass(list, cls) or issubclass(cls, list | tuple)


def _may_be_event(cls: type) -> bool:
    """Whether an object of a subclass can be an event."""
    return cls is Event or spec_of(cls) is not None or any(map(_may_be_event, type.__subclasses__(cls)))
