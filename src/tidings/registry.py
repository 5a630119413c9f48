"""The handlers of a bus, and what each parameter of theirs is given.

A decorator only notes the function. What its annotations mean is found out when the bus starts, so that types defined
later in a module work, and so that every mistake is reported before the first message is taken.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from .batch import Batch
from .engine import Lagged
from .errors import ConfigError
from .events import EventSpec
from .handlers import Handler
from .message import Message
from .returns import check_answer, check_follow_ups, emitted, show
from .schedule import Schedule
from .signatures import Parameter as Parameter
from .signatures import (
    can_be_event,
    check_annotated,
    check_batch,
    check_data,
    check_default,
    check_named,
    check_one_event,
    hints_of,
    looks_like_connection,
    specs_in,
    without_none,
)
from .subjects import check_group, overlap
from .unit import Units
from .versions import Upcasters

_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Plan(msgspec.Struct, frozen=True):
    """A handler's signature, understood."""

    parameters: tuple[Parameter, ...]
    is_async: bool
    units: Units | None
    connection: Any
    emits: tuple[str, ...]
    """Subjects of the events that its return annotation names, or its `Batch[…, these]`."""

    @property
    def batched(self) -> bool:
        """Whether it takes a `Batch`."""
        return any(parameter.kind == "batch" for parameter in self.parameters)

    @property
    def transactional(self) -> bool:
        return self.units is not None


class Listener(NamedTuple):
    """What hears live channels, and what it calls where it missed something."""

    handler: Handler
    lagged: Callable[[Lagged], Any] | None


Provider = Callable[..., Any]


class Registry:
    """What a bus knows: event types by subject, handlers by group, responders by subject, listeners, providers."""

    def __init__(self, roots: Sequence[str] = (">",)) -> None:
        self.roots = tuple(roots)
        self.types: dict[str, EventSpec] = {}
        self.upcasters = Upcasters()
        self.handlers: dict[str, Handler] = {}
        self.schedules: dict[str, Schedule] = {}
        self.responders: dict[str, Handler] = {}
        self.listeners: list[Listener] = []
        self.providers: dict[Any, Provider] = {}

    @property
    def idle(self) -> bool:
        """Whether a worker would have nothing to do."""
        return not (self.handlers or self.schedules or self.responders or self.listeners)

    def know(self, spec: EventSpec) -> None:
        """Remember the class of a subject; a second class for it is refused."""
        known = self.types.setdefault(spec.subject, spec)
        if known.type is not spec.type and known.version == spec.version:
            raise ConfigError(
                f"{spec.subject!r} already belongs to {known.type.__module__}.{known.type.__qualname__}; "
                f"{spec.type.__module__}.{spec.type.__qualname__} cannot have it too"
            )

    def add_handler(self, handler: Handler) -> None:
        group = self._new_group(handler)
        for filter in handler.filters:
            if not any(overlap(root, filter) for root in self.roots):
                raise ConfigError(
                    f"{handler.name}: {filter!r} is outside the durable subjects {', '.join(self.roots)}: hear live "
                    "channels with @bus.listen, make other subjects durable with Bus(roots=…)"
                )
        for spec in handler.classes:
            self.know(spec)
        self.handlers[group] = handler

    def add_schedule(self, schedule: Schedule) -> None:
        group = self._new_group(schedule.handler("any"))
        self.schedules[group] = schedule

    def handlers_in(self, namespace: str) -> dict[str, Handler]:
        """All handlers by group, those of schedules included, whose subjects carry the namespace."""
        return self.handlers | {name: schedule.handler(namespace) for name, schedule in self.schedules.items()}

    def _new_group(self, handler: Handler) -> str:
        group = check_group(handler.options.group)
        if group in self.handlers or group in self.schedules:
            known = self.handlers_in("any")[group].name
            raise ConfigError(
                f"group {group!r} already has the handler {known}; a group has one handler "
                "(give the second one a group of its own: it will get its own copy of every event)"
            )
        for spec in handler.classes:
            if spec.is_request:
                raise ConfigError(f"{handler.name}: {spec.type.__name__} is a request: answer it with @bus.reply")
        return group

    def add_provider(self, factory: Provider) -> None:
        """Remember what makes values of the type that `factory`'s return annotation names."""
        for parameter in inspect.signature(factory).parameters.values():
            if parameter.default is parameter.empty and parameter.kind not in _STARRED:
                raise ConfigError(f"{factory.__qualname__}: a provider is called without arguments")
        hints = hints_of(factory)
        made = hints.get("return")
        if typing.get_origin(made) in (AsyncIterator, Iterator) or _is_generator(made):
            made = typing.get_args(made)[0]
        if made is None:
            raise ConfigError(f"{factory.__qualname__}: a provider needs a return annotation that says what it makes")
        if made in self.providers:
            raise ConfigError(f"{made!r} already has a provider: {self.providers[made].__qualname__}")
        self.providers[made] = factory

    def plan(self, handler: Handler, units: Sequence[Units]) -> Plan:
        """Understand the handler's signature; every mistake raises `ConfigError` naming handler and parameter."""
        hints = hints_of(handler.function, handler.classes)
        parameters, found = [], None
        for parameter in inspect.signature(handler.function).parameters.values():
            annotation = self._meant(hints.get(parameter.name), units)
            if parameter.default is not parameter.empty and not self._is_given(handler, annotation, units):
                check_default(handler, parameter)
                continue
            check_named(handler, parameter)
            planned = self._parameter(handler, parameter.name, annotation, units)
            if planned.kind == "connection":
                if found is not None:
                    raise ConfigError(f"{handler.name}: only one parameter can be the transaction's connection")
                found = planned.type
            parameters.append(planned)
        check_one_event(handler, parameters)
        for planned in parameters:
            check_data(handler, planned)
        check_batch(handler, parameters)
        streams = self._streams(handler)
        is_async = streams or inspect.iscoroutinefunction(handler.function)
        owner = next((u for u in units if found is not None and u.accepts(found)), None)
        self._check_thread(handler, is_async, found)
        follow_ups = self._follow_ups(handler, hints, batched=any(p.kind == "batch" for p in parameters))
        return Plan(tuple(parameters), is_async, owner, found, follow_ups)

    def _streams(self, handler: Handler) -> bool:
        """Whether it answers with a stream. Any other handler does not yield."""
        answers = handler in self.responders.values()
        if inspect.isasyncgenfunction(handler.function) and answers:
            return True
        if inspect.isgeneratorfunction(handler.function) or inspect.isasyncgenfunction(handler.function):
            raise ConfigError(
                f"{handler.name}: a handler that answers with a stream is an `async def` that yields"
                if answers
                else f"{handler.name}: a handler returns its events, as a list if there are many; no yield"
            )
        return False

    def _follow_ups(self, handler: Handler, hints: Mapping[str, Any], *, batched: bool) -> tuple[str, ...]:
        """Subjects of the events that the handler says it returns, or lets follow."""
        made = hints.get("return")
        answered = next((subject for subject, known in self.responders.items() if known is handler), None)
        if answered is not None:
            check_answer(handler, made, self.types[answered])
        elif not any(handler is listener.handler for listener in self.listeners):
            check_follow_ups(handler, made, batched=batched)
        specs = emitted(made) + tuple(
            spec for hint in hints.values() if typing.get_origin(hint) is Batch for spec in emitted(_followed(hint))
        )
        for spec in specs:
            self.know(spec)
        return tuple(spec.subject for spec in specs)

    def _meant(self, annotation: Any, units: Sequence[Units]) -> Any:
        """`T` of `T | None` where a `T` is always there, or never."""
        inner = without_none(annotation)
        if annotation in self.providers or (specs_in(inner) is None and not self._is_offered(inner, units)):
            return annotation
        return inner

    def _is_offered(self, annotation: Any, units: Sequence[Units]) -> bool:
        return (
            (typing.get_origin(annotation) or annotation) in (Message, Batch)
            or annotation in self.providers
            or any(u.accepts(annotation) for u in units)
            or looks_like_connection(annotation)
        )

    def _is_given(self, handler: Handler, annotation: Any, units: Sequence[Units]) -> bool:
        """Whether a parameter that has a default is given something all the same."""
        if (specs := specs_in(annotation)) is not None:
            return any(handler.listens_to(spec.subject) for spec in specs)
        return self._is_offered(annotation, units)

    def _parameter(self, handler: Handler, name: str, annotation: Any, units: Sequence[Units]) -> Parameter:
        check_annotated(handler, name, annotation)
        if annotation is Message or typing.get_origin(annotation) is Message:
            arguments = typing.get_args(annotation)
            return Parameter(name, "message", arguments[0] if arguments else None)
        if annotation is Batch or typing.get_origin(annotation) is Batch:
            arguments = typing.get_args(annotation)
            return Parameter(name, "batch", arguments[0] if arguments else None)
        if annotation in self.providers:
            return Parameter(name, "provided", annotation)
        if any(u.accepts(annotation) for u in units):
            return Parameter(name, "connection", annotation)
        if looks_like_connection(annotation):
            raise ConfigError(
                f"{handler.name}: {name}: {show(annotation)} needs a database: give Bus(sessions=…) for async "
                "handlers, Bus(sync_sessions=…) for plain def handlers"
            )
        if can_be_event(annotation):
            return Parameter(name, "event", annotation)
        raise ConfigError(
            f"{handler.name}: nothing gives {name}: {show(annotation)}. Offer it with bus.provide(factory), or "
            "give it a default"
        )

    @staticmethod
    def _check_thread(handler: Handler, is_async: bool, connection: Any) -> None:
        if connection is None or not isinstance(connection, type):
            return
        wants_async = "Async" in connection.__name__
        if wants_async and not is_async:
            raise ConfigError(
                f"{handler.name}: a plain def handler takes a Session (Bus(sync_sessions=…)), not AsyncSession"
            )
        if not wants_async and is_async:
            raise ConfigError(f"{handler.name}: an async handler takes an AsyncSession (Bus(sessions=…)), not Session")


def _is_generator(made: Any) -> bool:
    name = getattr(typing.get_origin(made), "__name__", "")
    return name in ("AsyncGenerator", "Generator", "AsyncIterable", "Iterable")


def _followed(batch: Any) -> Any:
    """What a `Batch[E, F]` may be told with `follow`."""
    return typing.get_args(batch)[1] if len(typing.get_args(batch)) > 1 else None
