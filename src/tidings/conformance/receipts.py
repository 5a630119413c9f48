"""Waiting for what comes of a publish, and hearing that nothing will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidings import Bus, Event, Receipt
from tidings.engine import Entry, Lagged
from tidings.errors import DeadLettered, StillWorking
from tidings.watching.failures import Failed

from .app import AT_ONCE, Ordered, Packed, application, letters, over, process, reached
from .case import case
from .steps import raising
from .world import World


class Shipped(Event, subject="events.shop.shipped"):
    """What follows from a `Packed`."""

    number: int


class Shop:
    """Packs and ships; each step can be told to fail."""

    def __init__(self, world: World) -> None:
        self.broken: set[str] = set()
        self.bus = application(world, retry=AT_ONCE)

        @self.bus.on(Ordered, group="pack")
        async def pack(order: Ordered) -> Packed:
            self._try("pack")
            return Packed(number=order.number)

        @self.bus.on(Packed, group="ship")
        async def ship(packed: Packed) -> Shipped:
            self._try("ship")
            return Shipped(number=packed.number)

        @self.bus.on(Ordered, group="audit")
        async def audit(order: Ordered) -> None:
            self._try("audit")

    def _try(self, step: str) -> None:
        if step in self.broken:
            raise ValueError(f"{step} is broken")


@asynccontextmanager
async def shop_and_web(world: World, *broken: str, work: bool = True) -> AsyncIterator[tuple[Shop, Bus]]:
    """The shop at work in one process, and another process that publishes and waits."""
    shop, web = Shop(world), application(world, "web")
    shop.broken.update(broken)
    async with process(world, shop.bus, work=work), process(world, web, work=False):
        yield shop, web


@case("bus")
async def a_receipt_waits_for_its_own_event(world: World) -> None:
    """Fifty publishes of one process, waited for at once while another process handles them: each wait returns the
    event that came of its own publish, over two handlers."""
    async with shop_and_web(world) as (_, web):
        receipts = [await web.publish(Ordered(number=number)) for number in range(50)]
        found = await over(world, asyncio.gather(*(receipt.wait(Shipped, timeout=60) for receipt in receipts)))
    assert [shipped.number for shipped in found] == list(range(50))


@case("bus")
async def any_process_waits_by_the_id(world: World) -> None:
    """A process that did not publish rebuilds the receipt from its id, with or without its position, also when
    everything has happened before and much was published since."""
    async with shop_and_web(world) as (_, web), process(world, application(world, "else"), work=False) as elsewhere:
        receipt = await web.publish(Ordered(number=7))
        await over(world, receipt.wait(Shipped, timeout=60))
        await web.publish_many([Ordered(number=number) for number in range(100, 300)])
        for again in (
            elsewhere.bus.receipt(receipt.id),
            elsewhere.bus.receipt(receipt.id, position=receipt.position),
            Receipt(receipt.id, receipt.subject, receipt.position, waiting=elsewhere.bus.receipts),
        ):
            assert (await over(world, again.wait(Packed, timeout=60))).number == 7
            assert (await again.progress(Packed, Shipped)).state == "done"


@case("bus")
async def waiting_in_vain_harms_nothing(world: World) -> None:
    """While nobody works a wait ends with `StillWorking` after its time; the event is stored once all the same when a
    worker comes, and the next wait has it."""
    async with shop_and_web(world, work=False) as (shop, web):
        receipt = await web.publish(Ordered(number=1))
        with raising(StillWorking):
            await over(world, receipt.wait(Packed, timeout=world.moment))
        assert (await receipt.progress(Packed)).state == "working"
        assert shop.bus.connected is not None
        await shop.bus.connected.work()
        assert (await over(world, receipt.wait(Packed, timeout=60))).number == 1
        assert len(await web.engine.read(["events.shop.packed"], 0, 10)) == 1


@case("bus")
async def a_wait_ends_with_the_last_hope(world: World) -> None:
    """When the only group that could emit the event has given up, the wait ends long before its time, with the dead
    letter; a redrive brings the event, and another wait has it."""
    async with shop_and_web(world, "pack") as (shop, web):
        receipt = await web.publish(Ordered(number=1))
        error = await over(world, failing(receipt, Packed))
        assert [(letter.group, letter.reason) for letter in error.letters] == [("pack", "handler_error")]
        assert "pack is broken" not in str(error)
        progress = await receipt.progress(Packed)
        assert (progress.state, [failed.error for failed in progress.failures]) == ("dead", ["ValueError"])
        shop.broken.clear()
        assert await web.engine.redrive(await letters(world, web.engine, "pack")) == 1
        assert (await over(world, receipt.wait(Packed, timeout=60))).number == 1


@case("bus")
async def hope_follows_the_chain(world: World) -> None:
    """What a later handler gives up on ends the wait for its event alone; the failure of a group from which the event
    cannot come ends nothing."""
    async with shop_and_web(world, "ship", "audit") as (_, web):
        receipt = await web.publish(Ordered(number=1))
        error = await over(world, failing(receipt, Shipped))
        assert [(letter.group, letter.entry.subject) for letter in error.letters] == [("ship", "events.shop.packed")]
        await letters(world, web.engine, "audit")
        assert (await over(world, receipt.wait(Packed, timeout=60))).number == 1
        assert (await receipt.progress(Packed)).state == "done"
        assert (await receipt.progress(Shipped)).state == "dead"


@case("bus")
async def a_publish_inside_a_handler_is_told_from_its_siblings(world: World) -> None:
    """Two publishes of one handler belong to one chain; the receipt of each waits for what came of itself."""
    shop, web = Shop(world), application(world, "web")
    receipts: list[Receipt] = []

    @web.on(Shipped, group="again")
    async def again(shipped: Shipped) -> None:
        if shipped.number == 0:
            receipts.extend([await web.publish(Ordered(number=number)) for number in (1, 2)])

    async with process(world, shop.bus), process(world, web):
        await web.publish(Ordered(number=0))
        await reached(world, lambda: len(receipts) == 2, "the handler has published twice")
        second, first = receipts[1], receipts[0]
        assert (await over(world, second.wait(Packed, timeout=60))).number == 2
        assert (await over(world, first.wait(Packed, timeout=60))).number == 1


@case("bus")
async def watchers_hear_of_failures(world: World) -> None:
    """Whoever watches events in another process hears of each failure of the groups they come from, behind the message
    that failed, and of the last one that it was; of other groups nothing; and the event itself after a redrive."""
    async with shop_and_web(world, "pack", "audit") as (shop, web):
        running = await web.connect()
        hub = running.hub(("events.shop.ordered", "events.shop.packed"))
        reader, _ = await hub.join()
        await world.wait(world.moment)
        news: list[Entry | Failed | Lagged] = []

        async def watch() -> None:
            async for each in hub.follow(reader):
                news.append(each)  # noqa: PERF401

        watching = asyncio.create_task(watch())
        receipt = await web.publish(Ordered(number=1))
        await reached(world, lambda: any(getattr(each, "state", "") == "dead" for each in news), "the end is told")
        shop.broken.clear()
        await web.engine.redrive(await letters(world, web.engine, "pack"))
        await over(world, receipt.wait(Packed, timeout=60))
        await reached(world, lambda: isinstance(news[-1], Entry) and len(news) > 2, "the event comes at last")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    told = [each for each in news if isinstance(each, Failed)]
    assert isinstance(news[0], Entry)
    assert [(each.group, each.correlation, each.attempts) for each in told] == [
        ("pack", receipt.id, attempt) for attempt in (1, 2, 3)
    ]
    assert [each.state for each in told] == ["retrying", "retrying", "dead"]
    assert [each.subject for each in news if isinstance(each, Entry)] == ["events.shop.ordered", "events.shop.packed"]


async def failing(receipt: Receipt, event: type) -> DeadLettered:
    """The error that the wait ends with."""
    try:
        await receipt.wait(event, timeout=300)
    except DeadLettered as error:
        return error
    raise AssertionError(f"the wait for {event.__name__} did not fail")
