"""Events and a few steps for tests that run handlers on a `TestBus`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

import tidings
from tidings.engine import DeadLetter
from tidings.testing import TestBus

AT_ONCE = tidings.RetryPolicy(attempts=3, first=0, most=0)


class New(tidings.Event, subject="events.new"):
    item: str = ""


class Saved(tidings.Event, subject="events.saved"):
    item: str = ""


class Indexed(tidings.Event, subject="events.indexed"):
    item: str = ""


def new_bus(**more: Any) -> tidings.Bus:
    return tidings.Bus("todo", settings=tidings.Settings(retry=AT_ONCE, timeout=60), **more)


async def publish(bus: tidings.Bus, *events: Any) -> TestBus:
    """Run the bus until everything the events lead to has been handled."""
    async with TestBus(bus) as t:
        await bus.publish_many(events)
        await t.settle()
    return t


async def items(t: TestBus, subject: str) -> list[str]:
    """The field `item` of everything stored on the subject."""
    return [msgspec.json.decode(m.body)["item"] for m in await t.published(subject)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def died(bus: tidings.Bus, *events: Any) -> list[DeadLetter]:
    async with TestBus(bus) as t:
        await bus.publish_many(events)
        await t.settle()
        return await t.dead_letters()
