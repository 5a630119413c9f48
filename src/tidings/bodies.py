"""Events as bodies and answers of FastAPI routes, and as fields of Pydantic models.

Pydantic asks a class for its schema by the two methods here. msgspec does the work, so that a route refuses exactly
what a handler would refuse on arrival; nothing of Pydantic is imported before it asks.

FastAPI takes a parameter for the body if its class is a model, a mapping or a dataclass, and else for a part of the
query. So events answer to `dataclasses` as well: `fields`, `asdict` and `replace` work on them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from .codec import codec_for, plain
from .errors import DecodeError, InvalidMessage

if TYPE_CHECKING:
    from pydantic_core import CoreSchema, ValidationError

_PLACE = re.compile(r" - at (?:`key` in )?`\$(?P<path>.*)`$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")  # `[...]` is any key of a mapping
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`$")


class _Fields:
    """`__dataclass_fields__` of a Struct: the names alone, as its annotations may not be resolved yet."""

    def __get__(self, instance: object, owner: type[msgspec.Struct]) -> dict[str, dataclasses.Field[Any]]:
        return _fields(owner)


@lru_cache(maxsize=1024)
def _fields(cls: type[msgspec.Struct]) -> dict[str, dataclasses.Field[Any]]:
    made = dataclasses.make_dataclass(cls.__name__, cls.__struct_fields__)
    return {field.name: field for field in dataclasses.fields(made)}


class Body:
    """Base that makes a Struct a type of Pydantic's as well."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[Any] = _Fields()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        def validate(value: Any) -> Any:
            return value if isinstance(value, cls) else _read(cls, value)

        return core_schema.no_info_plain_validator_function(
            validate,
            # In Pydantic's own form: the name of the schema in OpenAPI comes from it.
            ref=f"{cls.__module__}.{cls.__qualname__}:{id(cls)}",
            serialization=core_schema.plain_serializer_function_ser_schema(plain),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        described: dict[str, Any] = _inlined(msgspec.json.schema(cls, schema_hook=_of_pydantic), {}, ())
        return described


def _read(cls: type, value: Any) -> Any:
    """An instance made of plain values. Raises Pydantic's `ValidationError`, which names the field."""
    try:
        return codec_for(cls).decode(codec_for(Any).encode(value))
    except (DecodeError, InvalidMessage) as error:
        raise _refusal(cls, str(error), value) from None


def _refusal(cls: type, text: str, value: Any) -> ValidationError:
    """msgspec names the first thing that is wrong at the end of its words: ``… - at `$.address.zip` ``."""
    from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

    place = _PLACE.search(text)
    text = text[: place.start()] if place else text
    steps = _STEP.findall(place["path"]) if place else []
    where = [int(part) if part.isdecimal() else part for name, index in steps if (part := index or name)]
    kind: PydanticCustomError | str = PydanticCustomError("invalid", text)
    if missing := _MISSING.search(text):
        where.append(missing["name"])
        kind = "missing"
    return ValidationError.from_exception_data(
        cls.__name__, [InitErrorDetails(type=kind, loc=tuple(where), input=value)]
    )


def _of_pydantic(cls: type) -> dict[str, Any]:
    """The schema of a Pydantic model inside an event."""
    if not hasattr(cls, "__pydantic_core_schema__"):
        raise NotImplementedError  # by which msgspec is told that there is none
    from pydantic import TypeAdapter

    return TypeAdapter(cls).json_schema()


def _inlined(schema: Any, known: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    """The schema without references, which would point into nothing from a place inside an OpenAPI document. A type
    that contains itself is described once; inside of that it is any value."""
    if isinstance(schema, list):
        return [_inlined(part, known, within) for part in schema]
    if not isinstance(schema, dict):
        return schema
    known = {**known, **schema.get("$defs", {})}
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name in within:
        return {}
    if name in known:
        beside = {key: part for key, part in schema.items() if key not in ("$ref", "$defs")}
        return {**_inlined(known[name], known, (*within, name)), **beside}
    # A discriminator maps to references; the constant in each alternative says the same.
    left_out = {"$defs", "discriminator"} if schema.keys() & {"anyOf", "oneOf"} else {"$defs"}
    return {key: _inlined(part, known, within) for key, part in schema.items() if key not in left_out}
