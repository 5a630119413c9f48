"""Pydantic models, a FastAPI route, a retry and its test.

Run: uvicorn 02_orders:app; test: python -m pytest 02_orders.py
"""

import asyncio
from decimal import Decimal

from fastapi import FastAPI
from pydantic import BaseModel, Field

import tidings
from tidings.testing import TestBus

bus = tidings.Bus("shop")
attempts: list[str] = []


@tidings.event("events.orders.placed", key="customer")
class OrderPlaced(BaseModel):
    customer: str
    total: Decimal = Field(gt=0)


@tidings.event("events.orders.confirmed")
class OrderConfirmed(BaseModel):
    customer: str


@bus.on(OrderPlaced, group="confirm", retry=tidings.RetryPolicy(attempts=5, first=1.0))
async def confirm(order: OrderPlaced, message: tidings.Message) -> OrderConfirmed:
    attempts.append(message.id)
    if message.attempt == 1:
        raise ConnectionError("the mail server does not answer")
    return OrderConfirmed(customer=order.customer)


app = FastAPI(lifespan=bus.lifespan(workers=True))


@app.post("/orders", status_code=202)
async def place(order: OrderPlaced) -> dict[str, str]:
    receipt = await bus.publish(order)
    return {"id": receipt.id}


def test_an_order_is_confirmed_at_the_second_try() -> None:
    async def scenario() -> None:
        async with TestBus(bus) as t:
            await bus.publish(OrderPlaced(customer="ada", total=Decimal("9.50")))
            await t.settle()
            assert await t.published("events.orders.confirmed") == []
            await t.clock.advance(1.0)
            await t.settle()
            [confirmed] = await t.published("events.orders.confirmed")
            assert confirmed.data == OrderConfirmed(customer="ada")
            assert len(attempts) == 2

    asyncio.run(scenario())
