"""What a type looks like in JSON, as far as its annotation tells: mistakes that would fail for every message are found
before the first one."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

_ANYTHING: Final = frozenset({"null", "boolean", "integer", "number", "text", "list", "object"})
_NOTHING: Final[frozenset[str]] = frozenset()
_OF_VALUES: Final = {bool: "boolean", int: "integer", float: "number", str: "text", type(None): "null"}
_TEXTS: Final = ("Str", "Bytes", "ByteArray", "MemoryView", "DateTime", "Time", "Date", "TimeDelta", "UUID", "Decimal")
_KINDS: Final = {
    "Any": _ANYTHING,
    "Raw": _ANYTHING,
    "Ext": _NOTHING,
    "None": frozenset({"null"}),
    "Bool": frozenset({"boolean"}),
    "Int": frozenset({"integer"}),
    "Float": frozenset({"number"}),
    **dict.fromkeys(_TEXTS, frozenset({"text"})),
    **dict.fromkeys(("List", "Set", "FrozenSet", "Tuple", "VarTuple", "NamedTuple"), frozenset({"list"})),
    **dict.fromkeys(("Dict", "TypedDict", "Dataclass"), frozenset({"object"})),
}
_ABSTRACT: Final = ("builtins", "collections.abc", "typing")
"""Whose classes are told by what they are, and not by what somebody has made of them."""
_ALSO_READ: Final = {"Float": frozenset({"integer"}), "Decimal": frozenset({"integer", "number"})}


def unwritable(type: Any) -> Any:
    """The class in `type` that JSON has nothing for, or None."""
    return next((part.cls for part in _parts(_members(type)) if not _kinds(part)), None)


def fits(made: Any, wanted: Any) -> bool:
    """Whether what is of type `made` can be read as `wanted`: False only if that is sure to fail, for one of the types
    of a union too."""
    return _fits(_members(made), _members(wanted))


@lru_cache(maxsize=1024)
def _members(type: Any) -> tuple[Any, ...]:
    """What msgspec knows of a type, or of each type of a union."""
    from msgspec import inspect

    if typing.get_origin(type) in (typing.Union, types.UnionType):
        return tuple(one for member in typing.get_args(type) for one in _members(member))
    try:
        return _split(inspect.type_info(type))
    except (TypeError, NameError, AttributeError):  # not for msgspec: `NoReturn`, a name that cannot be found
        return (inspect.AnyType(),)


def _split(looks: Any) -> tuple[Any, ...]:
    return looks.types if _name(looks) == "Union" else (looks,)


def _fits(made: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    accepted = [(_kinds(one) | _ALSO_READ.get(_name(one), _NOTHING), one) for one in wanted]
    for one in made:
        takers = [taker for kinds, taker in accepted if kinds & _kinds(one)]
        if not takers or (len(takers) == 1 and not _inside_fits(one, takers[0])):
            return False
    return True


def _inside_fits(made: Any, wanted: Any) -> bool:
    if hasattr(made, "item_type") and hasattr(wanted, "item_type"):
        return _fits(_split(made.item_type), _split(wanted.item_type))
    if hasattr(made, "fields") and hasattr(wanted, "fields"):
        there = {field.encode_name for field in made.fields}
        return all(field.encode_name in there for field in wanted.fields if field.required)
    return True


def _parts(members: tuple[Any, ...]) -> Iterator[Any]:
    """What they consist of, not looking into classes."""
    for one in members:
        if (item := getattr(one, "item_type", None) or getattr(one, "value_type", None)) is not None:
            yield from _parts(_split(item))
        else:
            yield one


def _name(looks: Any) -> str:
    return type(looks).__name__.removesuffix("Type")


def _kinds(looks: Any) -> frozenset[str]:
    match _name(looks):
        case "Struct":
            return frozenset({"list"}) if looks.array_like else frozenset({"object"})
        case "Enum":
            return _kinds_of(one.value for one in looks.cls)
        case "Literal":
            return _kinds_of(looks.values)
        case "Custom":
            return _kinds_of_custom(looks.cls)
        case name:
            return _KINDS.get(name, _ANYTHING)


def _kinds_of(values: Any) -> frozenset[str]:
    return frozenset(_OF_VALUES.get(type(value), "text") for value in values)


def _kinds_of_custom(cls: Any) -> frozenset[str]:
    """Of a class that msgspec does not know."""
    if hasattr(cls, "__pydantic_core_schema__") or hasattr(cls, "__pydantic_validator__"):
        return _ANYTHING if getattr(cls, "__pydantic_root_model__", False) else frozenset({"object"})
    if cls is object or getattr(cls, "_is_protocol", False):
        return _ANYTHING
    if cls.__module__ not in _ABSTRACT and _is_known_below(cls):
        return _ANYTHING
    return frozenset({"list"}) if issubclass(list, cls) else _NOTHING


def _is_known_below(cls: Any) -> bool:
    """Whether JSON has something for a subclass of it."""
    below: list[Any] = type.__subclasses__(cls)
    return any(_kinds(one) for subclass in below for one in _members(subclass))
