"""What follows from a message is read from the log once, however often somebody looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

import tidings
from tidings.engine import Entry
from tidings.engines.memory import MemoryEngine
from tidings.errors import EngineUnavailable
from tidings.testing import TestBus
from tidings.watching.chains import Chain, Chains


class Ordered(tidings.Event, subject="events.shop.ordered"):
    number: int


class Packed(tidings.Event, subject="events.shop.packed"):
    number: int


class Shipped(tidings.Event, subject="events.shop.shipped"):
    number: int


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many entries each read of the log gave, with the place behind which it began."""
    pages: list[tuple[int, int]] = []
    read = MemoryEngine.read

    async def noted(
        self: MemoryEngine, filters: Sequence[str], after: int, limit: int, wait: float = 0
    ) -> Sequence[Entry]:
        page = await read(self, filters, after, limit, wait)
        pages.append((after, len(page)))
        return page

    monkeypatch.setattr(MemoryEngine, "read", noted)
    return pages


@asynccontextmanager
async def shop() -> AsyncIterator[tuple[tidings.Bus, TestBus, asyncio.Event]]:
    """Packs, and ships when it may."""
    bus, may_ship = tidings.Bus("shop", url="memory:"), asyncio.Event()

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> Packed:
        return Packed(number=order.number)

    @bus.on(Packed, group="ship", retry=tidings.NEVER)
    async def ship(packed: Packed) -> Shipped:
        await may_ship.wait()
        if packed.number == 13:
            raise tidings.Reject("not this one")
        return Shipped(number=packed.number)

    async with TestBus(bus) as running:
        yield bus, running, may_ship
        may_ship.set()


async def stored(bus: tidings.Bus, count: int) -> None:
    """Wait until so many orders are packed."""
    async with asyncio.timeout(20):
        while len(await bus.engine.read(["events.shop.packed"], 0, 1000)) < count:
            await asyncio.sleep(0)


async def test_a_second_look_reads_what_is_new(handed: list[tuple[int, int]]) -> None:
    """Fifty messages that are none of its own are read at the first look, and not at the second; ten that came in
    between are."""
    async with shop() as (bus, _, _):
        receipt = await bus.publish(Ordered(number=0))
        await bus.publish_many([Ordered(number=number) for number in range(1, 51)])
        await stored(bus, 51)
        looks = []
        for more in (0, 0, 10):
            if more:
                await bus.publish_many([Ordered(number=100 + number) for number in range(more)])
                await stored(bus, 51 + more)
            handed.clear()
            again = bus.receipt(receipt.id, position=receipt.position)
            assert (await again.progress(Shipped)).state == "working"
            looks.append(sum(count for after, count in handed if after >= receipt.position))
        assert looks == [51, 0, 10]


async def test_what_is_remembered_leads_to_the_same_end() -> None:
    """A look before the chain has gone on, and one after it, tell the truth of their moment."""
    async with shop() as (bus, running, may_ship):
        good, bad = await bus.publish(Ordered(number=1)), await bus.publish(Ordered(number=13))
        await stored(bus, 2)
        assert [(await receipt.progress(Shipped)).state for receipt in (good, bad)] == ["working"] * 2
        may_ship.set()
        await running.settle()
        assert [(await receipt.progress(Shipped)).state for receipt in (good, bad)] == ["done", "dead"]
        assert (await good.wait(Shipped, timeout=60)).number == 1


async def test_two_looks_at_once_and_one_that_fails_count_each_message_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that is read by two at the same time, and again after the engine was away, has each message once."""
    async with shop() as (bus, _, may_ship):
        may_ship.set()
        receipt = await bus.publish(Ordered(number=1))
        await receipt.wait(Shipped, timeout=60)
        [root] = await bus.engine.read([">"], receipt.position - 1, 1)
        chain = Chain(bus.engine, "tidings", root, [">"])
        both = await asyncio.gather(chain.read(), chain.read())
        read = bus.engine.read

        async def away(filters: Sequence[str], after: int, limit: int, wait: float = 0) -> Sequence[Entry]:
            raise EngineUnavailable("away")

        monkeypatch.setattr(bus.engine, "read", away)
        with pytest.raises(EngineUnavailable):
            await chain.read()
        monkeypatch.setattr(bus.engine, "read", read)
        for found in (*both, await chain.read()):
            assert [entry.subject for entry in found] == [
                f"events.shop.{word}" for word in ("ordered", "packed", "shipped")
            ]


async def test_only_the_chains_looked_at_last_are_remembered() -> None:
    """The memory for chains is bounded; one that is forgotten is read again from its beginning."""
    async with shop() as (bus, _, _):
        receipt = await bus.publish(Ordered(number=1))
        [root] = await bus.engine.read([">"], receipt.position - 1, 1)
        chains = Chains(bus.engine, "tidings")
        first = chains.of(root, ["events.shop.packed"])
        assert chains.of(root, ["events.shop.packed"]) is first
        for number in range(300):
            chains.of(root, [f"events.other.{number}"])
        assert len(chains._chains) == 256
        assert chains.of(root, ["events.shop.packed"]) is not first
