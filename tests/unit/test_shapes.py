"""What a type looks like in JSON."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NoReturn, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel, RootModel

from tidings.shapes import fits, unwritable

T = TypeVar("T")


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Pair(msgspec.Struct, array_like=True):
    x: int


@dataclass
class Place:
    x: int
    z: str


class Keys(TypedDict):
    z: int


class Model(BaseModel):
    x: int


class Numbers(RootModel[list[int]]):
    pass


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


class Base:
    pass


@dataclass
class Known(Base):
    x: int


class Client:
    pass


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (int, int),
        (int, float),
        (int, Decimal),
        (UUID, str),
        (str, datetime),
        (Level, int),
        (Literal["a"], str),
        (int, int | None),
        (None, int | None),
        (tuple[int, ...], list[int]),
        (set[int], Sequence[int]),
        (Iterable[int], list[int]),
        (dict[str, Any], Point),
        (Place, Point),
        (Model, Point),
        (Point, Model),
        (Numbers, list[int]),
        (Point, Mapping[str, Any]),
        (list[Point], list[dict[str, int]]),
        (Any, int),
        (object, int),
        (T, int),
        (NoReturn, int),
        (int, Any),
        (Base, Point),
    ],
)
def test_what_may_be_read_is_let_through(made: Any, wanted: Any) -> None:
    """Nothing is refused that can be read, if only for some values."""
    assert fits(made, wanted)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (str, int),
        (bool, int),
        (float, int),
        (int, str),
        (None, int),
        (int | None, int),
        (int | str, int | None),
        (dict, list),
        (list[str], list[int]),
        (list[list[int]], list[int]),
        (Pair, Point),
        (Keys, Point),
        (Point, Place),
        (Model, list[int]),
        (Level, str),
        (Client, Any),
        (Client | int, Any),
        (AsyncIterator[int], int),
    ],
)
def test_what_can_never_be_read_is_found(made: Any, wanted: Any) -> None:
    """Another kind of JSON, a field that is missing, a class that JSON has nothing for; in any member of a union."""
    assert not fits(made, wanted)


def test_what_json_has_nothing_for_is_named() -> None:
    """The class is found in lists, mappings and unions."""
    odd: list[Any] = [Client, list[Client], dict[str, Client], Client | None, int | Client]
    for type in odd:
        assert unwritable(type) is Client
    plain: list[Any] = [int, Point, Model, Numbers, list[Any], dict[str, object], None]
    for type in plain:
        assert unwritable(type) is None
