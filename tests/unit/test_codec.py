"""Typed values to JSON and back: what is refused, and when."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

import tidings
from tidings.codec import MAX_DEPTH, check_depth, codec_for
from tidings.errors import ConfigError, DecodeError, InvalidMessage


class Struct(tidings.Event, subject="events.struct"):
    text: str = ""
    number: float = 0.0
    any: Any = None
    other: int | None = None


@dataclass
class Data:
    text: str = ""
    number: float = 0.0
    any: Any = None
    other: int | None = None


class Model(BaseModel):
    text: str = ""
    number: float = 0.0
    any: Any = None
    other: int | None = None


class Inner(BaseModel):
    number: float


class Picky(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        raise KeyError("of its own")


class PickyModel(BaseModel):
    n: int

    def model_post_init(self, context: Any) -> None:
        raise KeyError("of its own")


TYPES = [Struct, Data, Model]
types = pytest.mark.parametrize("type", TYPES)


@types
def test_a_value_comes_back_equal(type: Any) -> None:
    """Encoding and decoding keep a value, for each kind of class."""
    value = type(text="x ü 🙂", number=1.5, any={"a": [1, None]}, other=3)
    assert codec_for(type).decode(codec_for(type).encode(value)) == value


@types
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_is_refused_when_it_is_written(type: Any, number: float) -> None:
    """JSON has no NaN; writing `null` in its place would change the value behind the sender's back."""
    for value in (type(number=number), type(any=[{"deep": number}])):
        with pytest.raises(InvalidMessage, match=r"nan|inf"):
            codec_for(type).encode(value)


def test_nan_is_no_key() -> None:
    """A mapping with NaN for a key would arrive as one with a word for a key."""
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidMessage, match=r"nan|inf"):
            codec_for(Any).encode({number: 1})


def test_nan_is_found_where_the_type_promises_none() -> None:
    """A constructor does not check its arguments: NaN in a field for text is found all the same."""
    with pytest.raises(InvalidMessage, match="nan"):
        codec_for(Struct).encode(Struct(text=math.nan))  # type: ignore[arg-type]


def test_honest_nulls_and_words_are_no_nan() -> None:
    """None, and text that spells like NaN, are written as they are."""
    value = {"nan": "inf", "x": None, "info": ["null", "-inf"]}
    assert json.loads(codec_for(Any).encode(value)) == value


@types
@pytest.mark.parametrize("text", ["a\x00b", "\x00"])
def test_nul_is_refused_when_it_is_written(type: Any, text: str) -> None:
    """PostgreSQL cannot store NUL in text, so no handler would ever get through with it."""
    for value in (type(text=text), type(any={text: 1})):
        with pytest.raises(InvalidMessage, match="NUL"):
            codec_for(type).encode(value)


@given(st.text(alphabet=["\\", "u", "0", "\x00", '"', "a"], max_size=12))
def test_nul_is_told_from_text_that_looks_like_it(text: str) -> None:
    """A backslash followed by u0000 is six honest characters."""
    if "\x00" in text:
        with pytest.raises(InvalidMessage):
            codec_for(str).encode(text)
    else:
        assert codec_for(str).decode(codec_for(str).encode(text)) == text


@types
@pytest.mark.parametrize("text", ["\ud800", "x\udfff"])
def test_lone_surrogates_are_refused_when_they_are_written(type: Any, text: str) -> None:
    """Half a surrogate pair is no text and has no UTF-8."""
    for value in (type(text=text), type(any=[text]), type(any={text: 1})):
        with pytest.raises(InvalidMessage):
            codec_for(type).encode(value)


@types
def test_depth_is_limited_when_it_is_written(type: Any) -> None:
    """What every reader would refuse is not sent; the limit itself is allowed."""

    def nested(depth: int) -> Any:
        value: Any = "[{"
        for _ in range(depth):
            value = [value]
        return value

    fits = type(any=nested(MAX_DEPTH - 1))
    assert codec_for(type).decode(codec_for(type).encode(fits)) == fits
    for depth in (MAX_DEPTH, 5000):
        with pytest.raises(InvalidMessage):
            codec_for(type).encode(type(any=nested(depth)))


@types
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"{",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'\xef\xbb\xbf{"text": "x"}',
        '{"text": "x"}'.encode("utf-16"),
        b'{"number": NaN}',
        b'{"number": Infinity}',
        b"[" * 200_000,
        b'{"any": ' * 100 + b"1" + b"}" * 100,
        b'{"text": "x"} trailing',
    ],
)
def test_what_is_no_json_is_undecodable(type: Any, body: bytes) -> None:
    """Broken bytes are told from wrong shapes, for each kind of class, and never raise anything else."""
    with pytest.raises(DecodeError) as caught:
        codec_for(type).decode(body)
    assert caught.value.reason == "undecodable"


@types
@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b'{"text": 5}', b'{"number": "x"}', b'{"other": 1.5}'])
def test_another_shape_is_invalid(type: Any, body: bytes) -> None:
    """JSON of another shape says what is wrong with it."""
    with pytest.raises(DecodeError) as caught:
        codec_for(type).decode(body)
    assert caught.value.reason == "invalid"
    assert str(caught.value)


@types
def test_unknown_fields_are_ignored(type: Any) -> None:
    """A newer publisher may add fields while old workers still run."""
    assert codec_for(type).decode(b'{"text": "x", "added": {"later": 1}}').text == "x"


@types
@given(body=st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_no_bytes_raise_anything_but_a_decode_error(type: Any, body: bytes) -> None:
    """Whatever arrives becomes a value or a `DecodeError` with a known reason."""
    reason = "none"
    try:
        codec_for(type).decode(body)
    except DecodeError as error:
        reason = error.reason
    assert reason in ("none", "undecodable", "invalid")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5), inner, max_size=4
    ),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_plain_json_comes_back_exactly(value: Any) -> None:
    """Any JSON value survives, long integers included, and other tools read the same."""
    body = codec_for(Any).encode(value)
    assert codec_for(Any).decode(body) == value
    assert json.loads(body) == value


@pytest.mark.parametrize("type", [Picky, PickyModel, list[Picky], list[PickyModel]])
def test_a_types_own_error_is_the_messages_fault(type: Any) -> None:
    """A `__post_init__` or validator that raises what it likes makes a message invalid, not the worker crash."""
    body = b'{"n": 1}' if type in (Picky, PickyModel) else b'[{"n": 1}]'
    with pytest.raises(DecodeError, match="KeyError") as caught:
        codec_for(type).decode(body)
    assert caught.value.reason == "invalid"


def test_pydantic_models_may_stand_inside_other_types() -> None:
    """A list of models, as an answer to a request is, goes both ways with the model's own checks."""
    codec = codec_for(list[Inner | None])
    assert codec.decode(codec.encode([Inner(number=1), None])) == [Inner(number=1), None]
    with pytest.raises(DecodeError, match="number: Field required"):
        codec.decode(b'[{"x": 1}]')
    with pytest.raises(InvalidMessage, match="nan"):
        codec.encode([Inner(number=math.nan)])


def test_pydantic_aliases_go_both_ways() -> None:
    """The wire has the alias, which is what the validator expects."""

    class Aliased(BaseModel):
        inner: int = Field(alias="outer")

    body = codec_for(Aliased).encode(Aliased(outer=1))
    assert json.loads(body) == {"outer": 1}
    assert codec_for(Aliased).decode(body).inner == 1


def test_an_invalid_model_does_not_repeat_its_values() -> None:
    """Dead letters and logs say what is wrong with a field, not what a user had typed into it."""
    with pytest.raises(DecodeError) as caught:
        codec_for(Model).decode(b'{"number": "s3cret"}')
    assert "s3cret" not in str(caught.value)
    assert "number" in str(caught.value)


def test_times_are_written_as_rfc_3339() -> None:
    """Other languages read the times."""
    assert codec_for(datetime).encode(datetime(2026, 1, 2, 3, tzinfo=UTC)) == b'"2026-01-02T03:00:00Z"'


def test_what_json_cannot_say_is_refused() -> None:
    """An object of no known kind is refused when it is written, with its type's name."""
    with pytest.raises(InvalidMessage, match="object"):
        codec_for(Any).encode({"x": object()})
    with pytest.raises(InvalidMessage):
        codec_for(Any).encode({(1, 2): 3})


def test_a_type_that_cannot_be_decoded_is_a_config_error() -> None:
    """Two structs without a tag cannot be told apart; that is found before any message."""
    with pytest.raises(ConfigError, match="tagged"):
        codec_for(Struct | Picky)


@pytest.mark.parametrize("unclosed", [b'"' + b'\\"' * 300_000, b'"' * 299_999, b'"' + b"\\" * 300_001])
def test_hostile_strings_cost_no_time(unclosed: bytes) -> None:
    """A message of unclosed strings is looked through once, not once for each of its quotes."""
    begin = time.thread_time()
    check_depth(b"[]" * 100 + unclosed)
    assert time.thread_time() - begin < 2


@given(st.lists(st.sampled_from(["[", "{", "]", "}", '"', "\\", "x"]), max_size=60))
def test_brackets_in_strings_do_not_count(pieces: list[str]) -> None:
    """However a string is written, what stands in it has no depth."""
    text = "".join(pieces)
    check_depth(json.dumps([text, text[::-1]] * 3).encode())


def test_depth_counts_what_is_open() -> None:
    """Many brackets side by side are flat."""
    check_depth(b"[" + b"[]," * 1000 + b"[]]")
    check_depth(b"[" * MAX_DEPTH)
    with pytest.raises(DecodeError, match="deeper than 64"):
        check_depth(b'{"a":' * (MAX_DEPTH + 1))


def test_mappings_need_text_as_keys() -> None:
    """Numbers become text, as JSON wants it; typed mappings turn them back."""
    codec = codec_for(Mapping[int, str])
    assert codec.decode(codec.encode({1: "x"})) == {1: "x"}


def test_a_value_that_would_be_refused_on_arrival_is_not_sent() -> None:
    """msgspec makes instances without looking at their fields; the publisher hears of it, not a dead letter."""
    with pytest.raises(InvalidMessage, match=r"refused on arrival: Expected `str`, got `int` - at `\$\.text`"):
        codec_for(Struct).encode(Struct(text=5))  # type: ignore[arg-type]


class Line(msgspec.Struct):
    price: Any


class Bill(msgspec.Struct):
    lines: list[Line]


class Page(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    about: dict[str, Any]


@pytest.mark.parametrize(
    ("kind", "value", "place"),
    [
        (Bill, Bill([Line(1), Line(object())]), "$.lines[1].price"),
        (Page, Page(about={"a": 1, "b": object()}), "$.about.b"),
        (Any, {"a": {"b": object()}}, "$.a.b"),
    ],
)
def test_what_cannot_be_written_is_named(kind: Any, value: Any, place: str) -> None:
    """The error says in which field of the event the thing is that JSON has nothing for."""
    with pytest.raises(InvalidMessage, match=re.escape(f"at `{place}`")):
        codec_for(kind).encode(value)
