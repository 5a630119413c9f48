"""Event and request types: a class and the subject it travels on.

The class of an event is found by its *subject*; nothing is imported by name and there is no global registry, each bus
knows the types that its own handlers and publishers use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, dataclass_transform, get_args, get_origin

import msgspec

from .bodies import Body
from .errors import ConfigError, InvalidMessage
from .subjects import check_subject

R = TypeVar("R")
C = TypeVar("C", bound=type)

_ATTRIBUTE = "__tidings__"


class EventSpec(msgspec.Struct, frozen=True):
    """What the bus knows of an event or request class."""

    type: type
    subject: str
    version: int = 1
    key: str | None = None
    """Field whose value orders messages: those of one key keep their order for handlers that ask for it."""
    reply: Any = None
    """Requests: the type of the answer."""
    is_request: bool = False

    @property
    def ce_type(self) -> str:
        """The CloudEvents type: the subject, from version 2 on with `.v2` behind it."""
        return self.subject if self.version == 1 else f"{self.subject}.v{self.version}"


def spec_of(cls: object) -> EventSpec | None:
    """The spec given to exactly this class (not to a base of it), or None."""
    spec = getattr(cls, "__dict__", {}).get(_ATTRIBUTE)
    if not isinstance(spec, EventSpec):
        return None
    # `@dataclass(slots=True)` and attrs make a new class of a decorated one and copy its attributes.
    return spec if spec.type is cls else msgspec.structs.replace(spec, type=cls)


def require_spec(cls: type) -> EventSpec:
    """The spec of `cls`, or `ConfigError` with the two ways to give it one."""
    if not isinstance(cls, type):
        raise ConfigError(f"{cls!r} is no class of an event or request: name one, in the parentheses of a decorator")
    spec = spec_of(cls)
    if spec is None:
        raise ConfigError(
            f'{cls.__name__} has no subject: derive it from tidings.Event with `subject="events.…"`, '
            'or decorate it with @tidings.event("events.…")'
        )
    return spec


def _attach(cls: type, *, subject: str, version: int, key: str | None, reply: Any, is_request: bool) -> None:
    try:
        check_subject(subject)
    except InvalidMessage as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None
    if version < 1:
        raise ConfigError(f"{cls.__name__}: version={version}: versions count from 1")
    if key is not None and not _has_field(cls, key):
        raise ConfigError(f"{cls.__name__}: key={key!r} is not a field of it")
    setattr(cls, _ATTRIBUTE, EventSpec(cls, subject, version, key, reply, is_request))


def _has_field(cls: type, name: str) -> bool:
    return any(name in getattr(base, "__annotations__", {}) for base in cls.__mro__)


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class EventMeta(msgspec.StructMeta):
    """Metaclass of `Event` and `Request`: takes `subject=`, `key=` and `version=` beside msgspec's own options."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        subject: str | None = None,
        key: str | None = None,
        version: int = 1,
        **options: Any,
    ) -> Any:
        options.setdefault("frozen", True)
        cls: Any = super().__new__(mcls, name, bases, namespace, **options)
        if subject is not None:
            is_request = issubclass(cls, Request)
            reply = _reply_type(cls) if is_request else None
            _attach(cls, subject=subject, version=version, key=key, reply=reply, is_request=is_request)
        return cls


def _reply_type(cls: type) -> Any:
    for base in getattr(cls, "__orig_bases__", ()):
        origin = get_origin(base)
        if isinstance(origin, type) and issubclass(origin, Request):
            return get_args(base)[0]
    raise ConfigError(
        f"{cls.__name__} must say what it is answered with: class {cls.__name__}(tidings.Request[int], …)"
    )


class Event(Body, msgspec.Struct, metaclass=EventMeta):
    """Base of typed, durable events: `class NewItem(Event, subject="events.todo.newitem"): item: str`.

    Instances are frozen. Fields are checked strictly when a message arrives; fields that are unknown here are
    ignored, so that a newer publisher may add some. In FastAPI an event is a body or an answer, in a Pydantic model a
    field.
    """


class Request(Body, msgspec.Struct, Generic[R], metaclass=EventMeta):
    """Base of typed requests: `class CountItems(Request[int], subject="todo.count"): ...` is answered with an int."""


def event(subject: str, *, key: str | None = None, version: int = 1) -> Callable[[C], C]:
    """Make an event of a class of your own: a Pydantic model, a dataclass, an attrs class or a msgspec Struct."""

    def decorate(cls: C) -> C:
        _attach(cls, subject=subject, version=version, key=key, reply=None, is_request=False)
        return cls

    return decorate


def request(subject: str, *, reply: Any) -> Callable[[C], C]:
    """Make a request of a class of your own; `reply` is the type of its answer."""

    def decorate(cls: C) -> C:
        _attach(cls, subject=subject, version=1, key=None, reply=reply, is_request=True)
        return cls

    return decorate
