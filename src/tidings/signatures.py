"""What the parameters of a handler may be, and every mistake in them that is told when the bus starts."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Final, Literal

import msgspec

from .codec import codec_for
from .errors import ConfigError
from .events import EventSpec, spec_of
from .handlers import Handler
from .returns import show
from .shapes import fits

_STARRED: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_UNIONS: Final = (typing.Union, types.UnionType)


class Parameter(msgspec.Struct, frozen=True):
    """What one parameter of a handler is given."""

    name: str
    kind: Literal["event", "message", "batch", "connection", "provided"]
    type: Any
    """The event's type; for `message` and `batch` the type of the data or None; for the others the annotation."""


def hints_of(function: Callable[..., Any], classes: Sequence[EventSpec] = ()) -> Mapping[str, Any]:
    """The annotations of a function, resolved. A class that it was registered with is found by its name wherever it
    was defined."""
    try:
        return typing.get_type_hints(function)
    except (NameError, AttributeError) as error:
        known = {spec.type.__name__: spec.type for spec in classes}
        if isinstance(error, NameError) and error.name in known:
            try:
                return typing.get_type_hints(function, localns=known)
            except (NameError, AttributeError) as another:
                error = another
        raise ConfigError(
            f"{function.__module__}.{function.__qualname__}: the annotation {error.name!r} cannot be found when the "
            "bus starts: define or import it at the module's top (not inside a function, not under `if TYPE_CHECKING`)"
        ) from error


def specs_in(annotation: Any) -> list[EventSpec] | None:
    """The specs of an event class or of a union of them, None aside; None for anything else."""
    members = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    specs = [spec_of(member) for member in members if member is not types.NoneType]
    return None if None in specs or not specs else specs  # type: ignore[return-value]


def without_none(annotation: Any) -> Any:
    """`T` of `T | None`; anything else as it is."""
    if typing.get_origin(annotation) not in _UNIONS or types.NoneType not in typing.get_args(annotation):
        return annotation
    rest = tuple(member for member in typing.get_args(annotation) if member is not types.NoneType)
    return typing.Union[rest] if rest else annotation  # noqa: UP007


def looks_like_connection(annotation: Any) -> bool:
    """Whether it is one of SQLAlchemy's classes."""
    return isinstance(annotation, type) and annotation.__module__.partition(".")[0] == "sqlalchemy"


def can_be_event(annotation: Any) -> bool:
    """Whether a body of JSON can become that."""
    if annotation is Any or spec_of(annotation) is not None:
        return True
    origin = typing.get_origin(annotation) or annotation
    if origin in _UNIONS:
        return all(can_be_event(part) for part in typing.get_args(annotation) if part is not types.NoneType)
    if origin in (dict, list, str, int, float, bool, Mapping, Sequence):
        return True
    return isinstance(origin, type) and (
        issubclass(origin, msgspec.Struct)
        or is_dataclass(origin)
        or typing.is_typeddict(origin)
        or hasattr(origin, "__pydantic_core_schema__")
        or hasattr(origin, "__attrs_attrs__")
    )


def check_annotated(handler: Handler, name: str, annotation: Any) -> None:
    """Raise `ConfigError` for a parameter that does not say what it is."""
    if annotation is not None:
        return
    if name in ("self", "cls"):
        raise ConfigError(
            f"{handler.name}: {name} needs an object, and a decorator inside a class sees none: register the method of "
            f"an object, as in bus.on(…)(service.{handler.function.__name__})"
        )
    example = handler.classes[0].type.__name__ if handler.classes else "tidings.Message"
    raise ConfigError(
        f"{handler.name}: parameter {name!r} needs an annotation that says what it is, such as {name}: {example}"
    )


def check_named(handler: Handler, parameter: inspect.Parameter) -> None:
    """Raise `ConfigError` for a parameter that cannot be given by name."""
    if parameter.kind in _STARRED:
        raise ConfigError(
            f"{handler.name}: *{parameter.name} cannot be given anything: name each parameter (and decorate the inner "
            "function of a decorator of yours with functools.wraps)"
        )
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise ConfigError(f"{handler.name}: {parameter.name} is given by name: leave out the '/' behind it")


def check_default(handler: Handler, parameter: inspect.Parameter) -> None:
    """Raise `ConfigError` for a default that another framework would replace."""
    made = type(parameter.default)
    if made.__name__ == "Depends" or made.__module__.startswith("fastapi."):
        raise ConfigError(
            f"{handler.name}: nobody here resolves {parameter.name}={made.__name__}(…), which is FastAPI's: offer what "
            f"it makes with bus.provide(factory), and write {parameter.name}: ItsType without a default"
        )


def check_one_event(handler: Handler, parameters: Sequence[Parameter]) -> None:
    """Raise `ConfigError` if more than one parameter would be the event."""
    events = [parameter for parameter in parameters if parameter.kind == "event"]
    if len(events) < 2:
        return
    classes = [parameter for parameter in events if specs_in(parameter.type)]
    if len(classes) == 1:
        other = next(parameter for parameter in events if parameter is not classes[0])
        raise ConfigError(
            f"{handler.name}: nothing gives {other.name}: {show(other.type)} beside the event {classes[0].name}: "
            f"{show(classes[0].type)}. Read it from the event, give it a default, or offer it with bus.provide(factory)"
        )
    names = ", ".join(parameter.name for parameter in events)
    together = " | ".join(show(parameter.type) for parameter in events)
    raise ConfigError(
        f"{handler.name}: which of {names} is the event? It comes one at a time: write {events[0].name}: {together} "
        "for any of them; others need a default, a provider (bus.provide) or the sessions of a database "
        "(Bus(sessions=…))"
    )


def check_batch(handler: Handler, parameters: Sequence[Parameter]) -> None:
    """Raise `ConfigError` for what a batch handler cannot take."""
    batches = [parameter for parameter in parameters if parameter.kind == "batch"]
    for parameter in parameters:
        if batches and parameter is not batches[0] and parameter.kind in ("event", "message", "batch"):
            raise ConfigError(
                f"{handler.name}: {parameter.name} is one too many: {batches[0].name} has the events, and its "
                "`messages` the rest"
            )
    if handler.options.batch is not None and not batches:
        raise ConfigError(f"{handler.name}: batch={handler.options.batch}: no parameter of it is a Batch")


def check_data(handler: Handler, parameter: Parameter) -> None:
    """What the handler listens to must be able to become what its parameter says."""
    if parameter.kind not in ("event", "message", "batch") or parameter.type is None:
        return
    shown = f"{handler.name}: {parameter.name}: {show(parameter.type)}"
    specs = specs_in(parameter.type)
    if specs is None:
        codec_for(parameter.type)
        _check_plain(handler, parameter, shown)
        return
    for spec in specs:
        codec_for(spec.type)
        if not handler.listens_to(spec.subject):
            raise ConfigError(
                f"{shown}: the handler does not listen to {spec.subject!r}: take what its decorator names"
                + ("" if spec.is_request else f", or name {spec.type.__name__} there too")
            )
    for spec in handler.classes:
        if spec.subject not in {taken.subject for taken in specs}:
            raise ConfigError(
                f"{shown}: the handler also listens to {spec.type.__name__}, which is something else: write "
                f"{parameter.name}: {show(parameter.type)} | {spec.type.__name__}, or a handler for each"
            )


def _check_plain(handler: Handler, parameter: Parameter, shown: str) -> None:
    """A field's name and type where the event belongs would make a dead letter of every message."""
    for spec in handler.classes:
        if not fits(spec.type, parameter.type):
            name = spec.type.__name__
            field = f"event.{parameter.name}" if parameter.name in spec.type.__annotations__ else "its fields"
            raise ConfigError(
                f"{shown}: what comes is a whole {name}, and cannot be read as {show(parameter.type)}: take it as "
                f"event: {name}, and read {field} from that"
            )
