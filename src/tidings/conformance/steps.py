"""Steps that many cases take."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from tidings.engine import Claim, Delivery, Done, Engine, Failure, Group, Lagged, Outgoing, Signal, Stored
from tidings.errors import NoResponder

from .world import World

FAILURE = Failure("ValueError", "not today", "Traceback ...", handler="cases:handler", host="here", version="1")


def message(
    body: str | bytes = "{}",
    *,
    subject: str = "events.a",
    id: str | None = None,
    headers: dict[str, str] | None = None,
    not_before: float | None = None,
) -> Outgoing:
    """A message with an id of its own."""
    data = body.encode() if isinstance(body, str) else body
    return Outgoing(subject, data, headers or {}, id or uuid.uuid4().hex, not_before)


def group(world: World, name: str = "g", *filters: str, paused: bool = False) -> Group:
    """A group that wants everything on the filters (default: all there is), with the world's short lease."""
    claims = tuple(Claim(filter) for filter in filters or ("events.>",))
    return Group(name, claims, lease=world.lease, paused=paused)


async def publish(engine: Engine, *bodies: str, subject: str = "events.a") -> list[Stored]:
    """Publish one message for each body."""
    return await engine.publish([message(body, subject=subject) for body in bodies])


async def heard(signals: AsyncIterator[Signal | Lagged]) -> Signal:
    """The next thing that was said, where nothing may be missing."""
    signal = await anext(signals)
    assert isinstance(signal, Signal), f"missed something: {signal}"
    return signal


async def introduce(speaker: Engine, channel: str, *listeners: AsyncIterator[Signal | Lagged]) -> None:
    """Speak on the channel until each of the listeners has heard it, and let them forget these words.

    In a cluster it takes moments until each server knows of a new listener, so what is said through another server
    than the listener's own may come too early.
    """

    async def forget(signals: AsyncIterator[Signal | Lagged]) -> None:
        while (await heard(signals)).body != b"hello!":
            pass

    hearing = asyncio.gather(*(heard(signals) for signals in listeners))
    while not hearing.done():
        await speaker.broadcast(channel, b"hello?", {})
        await asyncio.sleep(0.01)
    await hearing
    await speaker.broadcast(channel, b"hello!", {})
    await asyncio.gather(*(forget(signals) for signals in listeners))


async def find(asker: Engine, subject: str, headers: dict[str, str] | None = None) -> None:
    """Ask until somebody answers: in a cluster the word of a new responder takes moments, as that of a listener."""
    while True:
        try:
            await asker.request(subject, b"there?", headers or {}, 20.0)
            return
        except NoResponder:
            await asyncio.sleep(0.01)


def texts(deliveries: Iterable[Delivery]) -> list[str]:
    """The bodies, as they came."""
    return [delivery.entry.body.decode() for delivery in deliveries]


async def take(engine: Engine, group: str, count: int) -> list[Delivery]:
    """Pull until `count` deliveries have come, which nothing but the case's deadline limits in time."""
    taken: list[Delivery] = []
    while len(taken) < count:
        taken += await engine.pull(group, count - len(taken), 30.0)
    return taken


async def take_one(engine: Engine, group: str) -> Delivery:
    """Pull the next one."""
    return (await take(engine, group, 1))[0]


async def finish(engine: Engine, deliveries: Iterable[Delivery]) -> None:
    """All of them are done."""
    await engine.settle([Done(delivery) for delivery in deliveries])


async def glance(world: World, engine: Engine, group: str, limit: int = 10) -> list[Delivery]:
    """What can be pulled now: waits a moment at most."""
    pull = asyncio.create_task(engine.pull(group, limit, world.moment))
    passing = asyncio.create_task(world.wait(world.moment * 1.5))
    try:
        await asyncio.wait({pull, passing}, return_when=asyncio.FIRST_COMPLETED)
        return await pull
    finally:
        pull.cancel()
        passing.cancel()


async def nothing(world: World, engine: Engine, *groups: str) -> None:
    """No delivery waits for any of the groups."""
    for name in groups:
        found = await glance(world, engine, name)
        assert texts(found) == [], f"group {name} was handed something"


async def take_later(world: World, engine: Engine, group: str, seconds: float) -> Delivery:
    """Pull the next one, which must not come before about `seconds` from now have passed."""
    pull = asyncio.create_task(engine.pull(group, 1, 100 * world.lease))
    try:
        await world.wait(seconds * 0.8)
        assert not pull.done(), f"it came too early: {pull.result()}"
        await world.wait(seconds * 0.3)
        return (await pull)[0]
    finally:
        pull.cancel()


@contextmanager
def raising(*errors: type[Exception]) -> Iterator[None]:
    """The block must raise one of the errors."""
    names = " or ".join(error.__name__ for error in errors)
    try:
        yield
    except errors:
        return
    raise AssertionError(f"nothing was raised where {names} was promised")
