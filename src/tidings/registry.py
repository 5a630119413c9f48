"""The handlers of a bus, and what each parameter of theirs is given.

A decorator only notes the function. What its annotations mean is found out when the bus starts, so that types defined
later in a module work, and so that every mistake is reported before the first message is taken.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from .batch import Batch
from .codec import codec_for
from .engine import Lagged
from .errors import ConfigError
from .events import EventSpec, spec_of
from .handlers import Handler
from .message import Message
from .schedule import Schedule
from .subjects import check_group, overlap
from .unit import Units
from .versions import Upcasters

_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Parameter(msgspec.Struct, frozen=True):
    """What one parameter of a handler is given."""

    name: str
    kind: Literal["event", "message", "batch", "connection", "provided"]
    type: Any
    """The event's type; for `message` and `batch` the type of the data or None; for the others the annotation."""


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
        hints = _hints(factory)
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
        hints = _hints(handler.function)
        parameters, found = [], None
        for parameter in inspect.signature(handler.function).parameters.values():
            if parameter.kind in _STARRED:
                raise ConfigError(f"{handler.name}: *{parameter.name} cannot be given anything")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise ConfigError(f"{handler.name}: {parameter.name} is given by name: leave out the '/' behind it")
            planned = self._parameter(handler, parameter.name, hints.get(parameter.name), units)
            if planned.kind == "connection":
                if found is not None:
                    raise ConfigError(f"{handler.name}: only one parameter can be the transaction's connection")
                found = planned.type
            _check_data(handler, planned)
            parameters.append(planned)
        if sum(p.kind == "event" for p in parameters) > 1:
            names = ", ".join(p.name for p in parameters if p.kind == "event")
            raise ConfigError(
                f"{handler.name}: which of {names} is the event? Others need a provider (bus.provide) or the sessions "
                "of a database (Bus(sessions=…))"
            )
        streams = inspect.isasyncgenfunction(handler.function) and handler in self.responders.values()
        if not streams and (
            inspect.isgeneratorfunction(handler.function) or inspect.isasyncgenfunction(handler.function)
        ):
            raise ConfigError(f"{handler.name}: a handler returns its events, as a list if there are many; no yield")
        _check_batch(handler, parameters)
        is_async = streams or inspect.iscoroutinefunction(handler.function)
        owner = next((u for u in units if found is not None and u.accepts(found)), None)
        self._check_thread(handler, is_async, found)
        emitted = _emitted(hints.get("return")) + tuple(
            spec for hint in hints.values() if typing.get_origin(hint) is Batch for spec in _emitted(_followed(hint))
        )
        for spec in emitted:
            self.know(spec)
        return Plan(tuple(parameters), is_async, owner, found, tuple(spec.subject for spec in emitted))

    def _parameter(self, handler: Handler, name: str, annotation: Any, units: Sequence[Units]) -> Parameter:
        if annotation is None:
            raise ConfigError(f"{handler.name}: parameter {name!r} needs an annotation that says what it is")
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
        if _looks_like_connection(annotation):
            raise ConfigError(
                f"{handler.name}: {name}: {_show(annotation)} needs a database: give Bus(sessions=…) for async "
                "handlers, Bus(sync_sessions=…) for plain def handlers"
            )
        if _can_be_event(annotation):
            return Parameter(name, "event", annotation)
        raise ConfigError(
            f"{handler.name}: nothing gives {name}: {_show(annotation)}. Offer it with bus.provide(factory)"
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


def _check_batch(handler: Handler, parameters: Sequence[Parameter]) -> None:
    batches = [parameter for parameter in parameters if parameter.kind == "batch"]
    for parameter in parameters:
        if batches and parameter is not batches[0] and parameter.kind in ("event", "message", "batch"):
            raise ConfigError(
                f"{handler.name}: {parameter.name} is one too many: {batches[0].name} has the events, and its "
                "`messages` the rest"
            )
    if handler.options.batch is not None and not batches:
        raise ConfigError(f"{handler.name}: batch={handler.options.batch}: no parameter of it is a Batch")


def _check_data(handler: Handler, parameter: Parameter) -> None:
    """What the handler listens to must be able to become what its parameter says."""
    if parameter.kind not in ("event", "message", "batch") or parameter.type is None:
        return
    is_union = typing.get_origin(parameter.type) in (typing.Union, types.UnionType)
    members = typing.get_args(parameter.type) if is_union else (parameter.type,)
    specs = [spec for member in members if (spec := spec_of(member)) is not None]
    if len(specs) < len(members):
        codec_for(parameter.type)
        return
    shown = f"{handler.name}: {parameter.name}: {_show(parameter.type)}"
    for spec in specs:
        codec_for(spec.type)
        if not handler.listens_to(spec.subject):
            raise ConfigError(f"{shown}: the handler does not listen to {spec.subject!r}")
    for spec in handler.classes:
        if spec.subject not in {taken.subject for taken in specs}:
            raise ConfigError(f"{shown}: the handler also listens to {spec.type.__name__}, which is something else")


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, AttributeError) as error:
        raise ConfigError(
            f"{function.__module__}.{function.__qualname__}: the annotation {error.name!r} cannot be found when the "
            "bus starts: import it at the module's top (not under `if TYPE_CHECKING`)"
        ) from error


def _is_generator(made: Any) -> bool:
    name = getattr(typing.get_origin(made), "__name__", "")
    return name in ("AsyncGenerator", "Generator", "AsyncIterable", "Iterable")


def _looks_like_connection(annotation: Any) -> bool:
    return isinstance(annotation, type) and annotation.__module__.partition(".")[0] == "sqlalchemy"


def _can_be_event(annotation: Any) -> bool:
    if annotation is Any or spec_of(annotation) is not None:
        return True
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return all(_can_be_event(part) for part in typing.get_args(annotation))
    if origin in (dict, list, str, int, float, bool, Mapping, Sequence):
        return True
    return isinstance(origin, type) and (
        issubclass(origin, msgspec.Struct)
        or is_dataclass(origin)
        or typing.is_typeddict(origin)
        or hasattr(origin, "__pydantic_core_schema__")
        or hasattr(origin, "__attrs_attrs__")
    )


def _emitted(annotation: Any) -> tuple[EventSpec, ...]:
    """Specs of the event classes in a return annotation: `A | B | None`, `list[A]`."""
    if (spec := spec_of(annotation)) is not None:
        return (spec,)
    return tuple(spec for part in typing.get_args(annotation) for spec in _emitted(part))


def _followed(batch: Any) -> Any:
    """What a `Batch[E, F]` may be told with `follow`."""
    return typing.get_args(batch)[1] if len(typing.get_args(batch)) > 1 else None


def _show(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
