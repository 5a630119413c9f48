"""Small applications, as the cases of the bus layer need them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, TypeVar

from tidings import Bus, Event, RetryPolicy
from tidings.engine import DeadLetter, Engine
from tidings.running import Running
from tidings.settings import Settings
from tidings.testing import attached

from .case import eventually
from .world import World

T = TypeVar("T")
Process: TypeAlias = AbstractAsyncContextManager[Running]


class Ordered(Event, subject="events.shop.ordered"):
    """What most cases publish."""

    number: int


class Packed(Event, subject="events.shop.packed"):
    """What follows from an `Ordered`."""

    number: int


AT_ONCE = RetryPolicy(attempts=3, first=0.0, most=0.0)
"""Three tries, without a pause."""


def application(world: World, name: str = "shop", *, retry: RetryPolicy = AT_ONCE, **options: Any) -> Bus:
    """A bus with the world's short times."""
    settings = Settings(
        lease=world.lease, grace=2 * world.lease, timeout=20 * world.lease, retry=retry, version_grace=world.lease
    )
    return Bus(name, settings=settings, **options)


@asynccontextmanager
async def process(
    world: World, bus: Bus, *, work: bool = True, engine: Engine | None = None, groups: list[str] | None = None
) -> AsyncIterator[Running]:
    """Run a bus as a process of its own would: with its own connection, until it stops and drains. All servers know
    of its responders and listeners."""
    using = engine or await world.engine()
    context = attached(bus, using, world.clock)
    running = await context.__aenter__()
    try:
        if work:
            await running.work(groups)
            if bus.registry.responders or bus.registry.listeners:
                await world.spread()
        yield running
    finally:
        await over(world, context.__aexit__(None, None, None))
        await using.close()


async def over(world: World, ending: Awaitable[T]) -> T:
    """The result of something that needs time to pass."""
    task = asyncio.ensure_future(ending)
    try:
        while not (await asyncio.wait({task}, timeout=0.02))[0]:
            await world.wait(world.lease / 20)
        return await task
    finally:
        task.cancel()


async def reached(world: World, condition: Callable[[], Any], promise: str) -> Any:
    """The first true result of the condition, which may be a coroutine function, while time passes."""

    async def look() -> Any:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if not result:
            await world.wait(world.lease / 20)
        return result

    return await eventually(look, promise)


async def letters(world: World, engine: Engine, group: str, count: int = 1) -> list[DeadLetter]:
    """The dead letters of a group, once there are so many."""

    async def enough() -> list[DeadLetter] | None:
        found = await engine.dead_letters(group)
        return found if len(found) >= count else None

    found: list[DeadLetter] = await reached(world, enough, f"{count} dead letters of {group}")
    assert len(found) == count
    return found


async def handled(world: World, engine: Engine, *groups: str) -> None:
    """Wait until nothing waits for the groups and nothing is in their hands."""

    async def idle() -> bool:
        stats = (await engine.stats()).groups
        return all((stats[g].waiting, stats[g].leased, stats[g].delayed) == (0, 0, 0) for g in groups)

    await reached(world, idle, f"everything of {', '.join(groups)} is handled")


async def bodies(engine: Engine, filter: str) -> list[bytes]:
    """What is stored on the subjects."""
    return [entry.body for entry in await engine.read([filter], 0, 1000)]
