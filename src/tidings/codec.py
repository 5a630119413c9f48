"""Typed values to JSON bytes and back.

msgspec does the work for its Structs, dataclasses, attrs classes, TypedDicts and plain values; Pydantic models go
through their own validator, which is found without importing Pydantic. What JSON cannot say exactly (NaN, infinity) or
databases cannot hold (NUL, lone surrogates) is refused when it is encoded, not found when it arrives.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec

from .errors import ConfigError, DecodeError, InvalidMessage

MAX_DEPTH: Final = 64

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Codec(Protocol):
    """Bytes of one type."""

    def encode(self, value: Any) -> bytes:
        """JSON of `value`; raises `InvalidMessage`."""
        ...

    def decode(self, body: bytes) -> Any:
        """The value, or `DecodeError` with the reason `undecodable` or `invalid`."""
        ...


@lru_cache(maxsize=1024)
def codec_for(type: Any) -> Codec:
    """The codec of a type; `Any` for plain JSON. Raises `ConfigError` for types no codec knows."""
    if hasattr(type, "__pydantic_core_schema__") or hasattr(type, "__pydantic_validator__"):
        return _Pydantic(type)
    try:
        return _Msgspec(type)
    except TypeError as error:
        raise ConfigError(f"{type!r} cannot be read from JSON: {error}") from error


class _Msgspec:
    def __init__(self, type: Any) -> None:
        self._decoder = msgspec.json.Decoder(type)
        self._encoder = msgspec.json.Encoder()
        self._floats = _may_hold_float(type)

    def encode(self, value: Any) -> bytes:
        try:
            if self._floats:
                _refuse_nan(msgspec.to_builtins(value))
            body = self._encoder.encode(value)
        except InvalidMessage:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidMessage(f"{type(value).__name__} cannot be written as JSON: {error}") from error
        _refuse_nul(body)
        return body

    def decode(self, body: bytes) -> Any:
        check_depth(body)
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise DecodeError("invalid", str(error)) from error
        except (ValueError, RecursionError) as error:
            raise DecodeError("undecodable", f"not JSON: {error}") from error


class _Pydantic:
    def __init__(self, type: Any) -> None:
        from pydantic import TypeAdapter

        self._adapter: TypeAdapter[Any] = TypeAdapter(type)

    def encode(self, value: Any) -> bytes:
        try:
            plain = self._adapter.dump_python(value, mode="json", by_alias=True)
            _refuse_nan(plain)
            body = msgspec.json.encode(plain)
        except InvalidMessage:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidMessage(f"{type(value).__name__} cannot be written as JSON: {error}") from error
        _refuse_nul(body)
        return body

    def decode(self, body: bytes) -> Any:
        check_depth(body)
        try:
            msgspec.json.decode(body, type=msgspec.Raw)
        except (ValueError, RecursionError) as error:
            raise DecodeError("undecodable", f"not JSON: {error}") from error
        from pydantic import ValidationError

        try:
            return self._adapter.validate_json(body)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc']) or '$'}: {problem['msg']}"
                for problem in error.errors(include_url=False, include_input=False, include_context=False)
            )
            raise DecodeError("invalid", problems) from error


def check_depth(body: bytes) -> None:
    """Raise `DecodeError` for JSON nested deeper than `MAX_DEPTH`, before a parser recurses into it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(body):
        character = match.group()
        if character in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise DecodeError("undecodable", f"JSON nested deeper than {MAX_DEPTH} levels")
        elif character in (b"]", b"}"):
            depth -= 1


def _refuse_nul(body: bytes) -> None:
    if b"\\u0000" in body and _NUL.search(body):
        raise InvalidMessage("the text has a NUL character, which databases cannot store")


def _refuse_nan(value: Any) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidMessage(f"{value} cannot be written as JSON")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_nan(key)
            _refuse_nan(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _refuse_nan(item)


def _may_hold_float(type: Any) -> bool:
    """Whether a value of the type can hold a float: only then each value has to be looked through."""
    seen: set[int] = set()

    def visit(info: Any) -> bool:
        if isinstance(info, msgspec.inspect.FloatType | msgspec.inspect.AnyType | msgspec.inspect.CustomType):
            return True
        if not isinstance(info, msgspec.Struct) or id(info) in seen:
            return False
        seen.add(id(info))
        for name in info.__struct_fields__:
            part = getattr(info, name)
            parts = part if isinstance(part, tuple) else (part,)
            if any(visit(item) for item in parts):
                return True
        return False

    try:
        return visit(msgspec.inspect.type_info(type))
    except TypeError:
        return True
