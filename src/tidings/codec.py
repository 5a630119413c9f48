"""Typed values to JSON bytes and back.

msgspec does the work for its Structs, dataclasses, attrs classes, TypedDicts and plain values; Pydantic models go
through their own validator, which is found without importing Pydantic. What JSON cannot say exactly (NaN, infinity) or
databases cannot hold (NUL, lone surrogates) is refused when it is encoded, not found when it arrives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec

from .errors import ConfigError, DecodeError, InvalidMessage

MAX_DEPTH: Final = 64

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# NUL, and what msgspec makes of NaN and infinity: null as a value, a word as a key. Nearly no message has any of it.
_ODD = re.compile(rb'null|"nan"|inf"|\\u0000')
# An unclosed string is taken to the end in one step: else each of its quotes would be tried as a beginning.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


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
        self._decoder = msgspec.json.Decoder(type, dec_hook=_from_plain)
        self._encoder = msgspec.json.Encoder(enc_hook=_to_plain)
        self._typed = type is not Any

    def encode(self, value: Any) -> bytes:
        try:
            body = self._encoder.encode(value)
            if _ODD.search(body):
                _refuse_nul(body)
                _refuse_nan(msgspec.to_builtins(value, enc_hook=_to_plain))
        except (TypeError, ValueError, RecursionError) as error:
            raise _unwritable(value, error) from error
        _refuse_depth(body)
        if self._typed:
            # msgspec checks fields when it decodes, not when an instance is made: do it while the publisher can hear
            # of it, not when the message has become a dead letter.
            try:
                self._decode(body)
            except DecodeError as error:
                raise InvalidMessage(f"{type(value).__name__} would be refused on arrival: {error}") from error
        return body

    def decode(self, body: bytes) -> Any:
        check_depth(body)
        return self._decode(body)

    def _decode(self, body: bytes) -> Any:
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise DecodeError("invalid", str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError("undecodable", f"not JSON: {error}") from error
        except Exception as error:
            raise _refused(error) from error


class _Pydantic:
    def __init__(self, type: Any) -> None:
        from pydantic import TypeAdapter

        self._adapter: TypeAdapter[Any] = TypeAdapter(type)

    def plain(self, value: Any) -> Any:
        """The value as dicts, lists and plain values, for a place inside another type."""
        self._refuse_nan(value)
        return self._adapter.dump_python(value, mode="json", by_alias=True)

    def _refuse_nan(self, value: Any) -> None:
        # In JSON mode Pydantic has made None of some of them already.
        _refuse_nan(self._adapter.dump_python(value))

    def encode(self, value: Any) -> bytes:
        try:
            body = msgspec.json.encode(self._adapter.dump_python(value, mode="json", by_alias=True))
            if _ODD.search(body):
                _refuse_nul(body)
                self._refuse_nan(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise _unwritable(value, error) from error
        _refuse_depth(body)
        return body

    def decode(self, body: bytes) -> Any:
        check_depth(body)
        from pydantic import ValidationError

        try:
            # Pydantic's parser takes NaN, which is no JSON.
            msgspec.json.decode(body, type=msgspec.Raw)
            return self._adapter.validate_json(body)
        except ValidationError as error:
            broken = any(problem["type"] == "json_invalid" for problem in error.errors(include_url=False))
            raise DecodeError("undecodable" if broken else "invalid", _problems(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError("undecodable", f"not JSON: {error}") from error
        except Exception as error:
            raise _refused(error) from error


def plain(value: Any) -> Any:
    """The value as dicts, lists and plain values: what its JSON says."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=_to_plain)


def _to_plain(value: Any) -> Any:
    """Pydantic models inside other types: msgspec asks here for what it does not know."""
    made: Any = type(value)
    codec = codec_for(made)
    if isinstance(codec, _Pydantic):
        return codec.plain(value)
    raise TypeError(f"JSON has nothing for {made.__name__}")


def _from_plain(type: Any, value: Any) -> Any:
    codec = codec_for(type)
    if not isinstance(codec, _Pydantic):
        raise TypeError(f"nothing makes {type.__name__} of JSON")
    try:
        return codec.decode(msgspec.json.encode(value))
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _problems(error: Any) -> str:
    """What Pydantic found wrong, without the values, which may be secret."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or '$'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    )


def _unwritable(value: Any, error: Exception) -> InvalidMessage:
    if isinstance(error, InvalidMessage):
        return error
    place = "" if isinstance(error, RecursionError) else _place(value)
    return InvalidMessage(f"{type(value).__name__} cannot be written as JSON: {error}{place and f' - at `${place}`'}")


def _place(value: Any, depth: int = 0) -> str:
    """Where in the value the part is that cannot be written, as msgspec says it: `.items[2].price`."""
    for step, part in _parts(value) if depth < MAX_DEPTH else ():
        try:
            msgspec.json.encode(part, enc_hook=_to_plain)
        except Exception:
            return step + _place(part, depth + 1)
    return ""


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return ((f".{key}", part) for key, part in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ((f"[{index}]", part) for index, part in enumerate(value))
    fields = ("__struct_fields__", "__dataclass_fields__", "__pydantic_fields__")
    names = next((getattr(type(value), name) for name in fields if hasattr(type(value), name)), ())
    return ((f".{name}", getattr(value, name)) for name in names)


def _refused(error: Exception) -> DecodeError:
    """A `__post_init__` or validator failed with an error of its own: for the worker the message is to blame."""
    return DecodeError("invalid", f"its type refused it: {type(error).__name__}: {error}")


def _refuse_nul(body: bytes) -> None:
    if _NUL.search(body):
        raise InvalidMessage("the text has a NUL character, which databases cannot store")


def _refuse_depth(body: bytes) -> None:
    if _too_deep(body):
        raise InvalidMessage(f"the value is nested deeper than {MAX_DEPTH} levels: nobody would read it")


def check_depth(body: bytes) -> None:
    """Raise `DecodeError` for JSON nested deeper than `MAX_DEPTH`, before a parser recurses into it."""
    if _too_deep(body):
        raise DecodeError("undecodable", f"JSON nested deeper than {MAX_DEPTH} levels")


def _too_deep(body: bytes) -> bool:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(body):
        character = match.group()
        if character in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif character in (b"]", b"}"):
            depth -= 1
    return False


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
