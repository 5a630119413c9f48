"""Events as bodies and answers of a real FastAPI application."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import fastapi
import httpx
import msgspec
import pydantic
import pytest
from fastapi.encoders import jsonable_encoder

import tidings
from tidings.testing import TestBus

bus = tidings.Bus("shop")
app = fastapi.FastAPI()


class Country(enum.Enum):
    NL = "nl"
    IT = "it"


class Address(msgspec.Struct):
    street: str
    zip: Annotated[int, msgspec.Meta(gt=0)]
    country: Country = Country.NL


class Gift(pydantic.BaseModel):
    to: str = pydantic.Field(min_length=2)


class Card(msgspec.Struct, tag=True):
    number: str


class Cash(msgspec.Struct, tag=True):
    coins: int


class Part(msgspec.Struct):
    name: str
    parts: list[Part] = []


class OrderPlaced(tidings.Event, subject="events.orders.placed"):
    item: str
    address: Address
    paid: Card | Cash
    parts: list[Part] = msgspec.field(default_factory=list)
    total: Decimal = Decimal("9.50")
    gift: Gift | None = None
    at: datetime | None = None
    counts: dict[Annotated[str, msgspec.Meta(min_length=1)], int] = msgspec.field(default_factory=dict)


class CountOrders(tidings.Request[int], subject="orders.count"):
    since: int = 0


class Envelope(pydantic.BaseModel):
    order: OrderPlaced
    note: str = ""


@app.post("/orders", status_code=202)
async def place(order: OrderPlaced) -> OrderPlaced:
    await bus.publish(order)
    return order


@app.post("/enveloped")
async def enveloped(envelope: Envelope) -> Envelope:
    return envelope


@app.post("/count")
async def count(question: CountOrders) -> int:
    return question.since


@app.get("/last", response_model=list[OrderPlaced])
async def last() -> list[dict[str, Any]]:
    return [ORDER]


ORDER: dict[str, Any] = {
    "item": "book",
    "address": {"street": "Dam", "zip": 1012},
    "paid": {"type": "Cash", "coins": 3},
}
COMPLETE = {
    **ORDER,
    "address": {"street": "Dam", "zip": 1012, "country": "nl"},
    "parts": [],
    "total": "9.50",
    "gift": None,
    "at": None,
    "counts": {},
}


@pytest.fixture
async def client() -> Any:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as made:
        yield made


async def test_an_event_is_a_body_and_an_answer(client: httpx.AsyncClient) -> None:
    """A route takes an event with classes of msgspec and Pydantic inside, publishes it and answers with it."""
    sent = {**ORDER, "gift": {"to": "ada"}, "at": "2026-11-23T10:00:00Z", "parts": [{"name": "a", "parts": []}]}
    async with TestBus(bus) as t:
        answer = await client.post("/orders", json=sent)
        [stored] = await t.published("events.orders.placed")
    assert answer.status_code == 202
    assert answer.json() == {**COMPLETE, **{key: sent[key] for key in ("gift", "at", "parts")}}
    assert stored.data["at"] == "2026-11-23T10:00:00Z"
    event = msgspec.convert(answer.json(), OrderPlaced, dec_hook=lambda type, value: type(**value))
    assert (event.at, event.gift) == (datetime(2026, 11, 23, 10, tzinfo=UTC), Gift(to="ada"))


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"item": 5}, ["item"], "Expected `str`, got `int`"),
        ({"item": None}, ["item"], "Expected `str`, got `null`"),
        ({"address": {"street": "Dam", "zip": 0}}, ["address", "zip"], "Expected `int` >= 1"),
        ({"address": {"street": "Dam"}}, ["address", "zip"], "Field required"),
        ({"parts": [{"name": "a"}, {"name": 1}]}, ["parts", 1, "name"], "Expected `str`, got `int`"),
        ({"paid": {"type": "Shells"}}, ["paid", "type"], "Invalid value 'Shells'"),
        ({"gift": {"to": "a"}}, ["gift"], "to: String should have at least 2 characters"),
        ({"counts": {"a": "b"}}, ["counts", "..."], "Expected `int`, got `str`"),
        ({"counts": {"": 1}}, ["counts"], "Expected `str` of length >= 1"),
        ({"item": "a\0b"}, [], "the text has a NUL character"),
    ],
)
async def test_a_wrong_body_is_422_with_the_field(
    client: httpx.AsyncClient, change: dict[str, Any], where: list[str | int], words: str
) -> None:
    """What a handler would refuse on arrival is refused by the route, as FastAPI does, with the place of the fault."""
    answer = await client.post("/orders", json={**ORDER, **change})
    assert answer.status_code == 422, answer.text
    [problem] = answer.json()["detail"]
    assert problem["loc"] == ["body", *where]
    assert words in problem["msg"]
    assert "ctx" not in problem


async def test_no_body_and_no_object_are_422(client: httpx.AsyncClient) -> None:
    """A missing body, and one that is no object, are the client's mistakes."""
    assert (await client.post("/orders")).status_code == 422
    answer = await client.post("/orders", json=[1])
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body"])
    missing = await client.post("/orders", json={})
    assert missing.json()["detail"][0] == {
        "type": "missing",
        "loc": ["body", "item"],
        "msg": "Field required",
        "input": {},
    }


async def test_an_event_is_a_field_of_a_model(client: httpx.AsyncClient) -> None:
    """A Pydantic model has an event as a field: read, written, and wrong at a place inside of the model."""
    answer = await client.post("/enveloped", json={"order": ORDER})
    assert answer.json() == {"order": COMPLETE, "note": ""}
    wrong = await client.post("/enveloped", json={"order": {**ORDER, "item": 5}})
    assert wrong.json()["detail"][0]["loc"] == ["body", "order", "item"]
    order = OrderPlaced(item="book", address=Address("Dam", 1012), paid=Cash(3))
    kept = Envelope(order=order)
    assert kept.order is order
    assert Envelope.model_validate_json(kept.model_dump_json()) == kept


async def test_a_response_model_takes_plain_values_and_refuses_wrong_ones(client: httpx.AsyncClient) -> None:
    """`response_model=list[OrderPlaced]` makes events of the dictionaries that a route returns."""
    assert (await client.get("/last")).json() == [COMPLETE]


async def test_a_request_is_a_body(client: httpx.AsyncClient) -> None:
    """The classes of requests are taken as events are."""
    assert (await client.post("/count", json={"since": 7})).json() == 7


async def test_openapi_describes_the_event(client: httpx.AsyncClient) -> None:
    """/openapi.json has the event under its name, nested classes described in it; every reference finds its target."""
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/orders"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/OrderPlaced"}
    order = schemas["OrderPlaced"]
    assert order["required"] == ["item", "address", "paid"]
    assert order["properties"]["address"]["properties"]["zip"] == {"type": "integer", "exclusiveMinimum": 0}
    assert order["properties"]["address"]["properties"]["country"]["enum"] == ["it", "nl"]
    assert [way["properties"]["type"] for way in order["properties"]["paid"]["anyOf"]] == [
        {"enum": ["Card"]},
        {"enum": ["Cash"]},
    ]
    assert order["properties"]["parts"]["items"]["properties"]["parts"]["items"] == {}
    assert "minLength" in json.dumps(order["properties"]["gift"])
    assert "CountOrders" in schemas
    for reference in references(document):
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_an_event_answers_to_dataclasses() -> None:
    """`dataclasses.asdict` and `replace` work on events, and so does FastAPI's `jsonable_encoder`, which uses them."""
    question = CountOrders(since=7)
    assert dataclasses.asdict(question) == {"since": 7}
    assert dataclasses.replace(question, since=8) == CountOrders(since=8)
    assert jsonable_encoder({"asked": question}) == {"asked": {"since": 7}}


def test_asking_whether_an_event_is_a_dataclass_resolves_no_annotation() -> None:
    """pytest and others ask this of any object, also of one whose annotations name what is not there."""

    class Moved(tidings.Event, subject="events.moved"):
        to: Nowhere  # type: ignore[name-defined]  # noqa: F821

    assert [field.name for field in dataclasses.fields(Moved)] == ["to"]
