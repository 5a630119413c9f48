"""The process side of groups: pull, hand to the handler, settle, keep leases, drain.

    consumer ──> each ──> handling ──> hands
    (pulls)      (runs)   (decides)    (settle, in batches)

A message that is in hand has its lease renewed every third of it until its outcome is settled. Stopping: no new pull,
what waits in buffers goes back at once, running handlers get the grace time, what still runs then is cancelled and
handed back without burning an attempt. A handler that ignores even that is left behind: its lease ends by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from ..clock import Clock
from ..engine import Delivery, Engine, Outcome
from ..order import OrderedConsumer
from ..outbox import Relay
from .consumer import Consumer
from .handling import Handling
from .hands import Hands
from .standstill import Standstill
from .suspects import Floor

log = logging.getLogger("tidings.worker")

_CANCEL_WAIT = 5.0


class Worker:
    """Runs some groups until it is told to stop."""

    def __init__(
        self,
        engine: Engine,
        handlings: Sequence[Handling],
        relays: Sequence[Relay],
        *,
        clock: Clock,
        lease: float,
        grace: float,
        settled: Callable[[Sequence[Outcome]], None] | None = None,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.lease = lease
        self.grace = grace
        self._relays = {id(relay): relay for relay in relays}
        self._hands = Hands(engine, clock)
        if settled is not None:
            self._hands.on_settled = settled
        floor = Floor()
        self._groups = [self._consumer(handling, self._relay_of(handling, relays), floor) for handling in handlings]
        self._standstill = Standstill(handlings)
        self._leases: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None

    def _consumer(self, handling: Handling, relay: Relay | None, floor: Floor) -> Consumer:
        if handling.handler.options.order:
            return OrderedConsumer(self.engine, handling, self._hands, relay, floor, lease=self.lease)
        return Consumer(self.engine, handling, self._hands, relay, floor)

    @staticmethod
    def _relay_of(handling: Handling, relays: Sequence[Relay]) -> Relay | None:
        return next((relay for relay in relays if relay.units is handling.plan.units), None)

    @property
    def busy(self) -> bool:
        """Whether a handler runs, an outcome waits to be settled or a follow-up to be sent."""
        return self._hands.busy or any(relay.busy for relay in self._relays.values())

    @property
    def resting(self) -> Collection[Delivery]:
        """What is in hand and just waits for its time."""
        return self._hands.resting

    def start(self) -> None:
        """Begin; returns at once. Everything runs in tasks of this event loop until `stop`."""
        self._leases = asyncio.create_task(self._hands.keep_leases(self.lease), name="tidings-leases")
        self._settling = asyncio.create_task(self._hands.settle_all(), name="tidings-settle")
        for group in self._groups:
            group.start()
        self._standstill.start()

    async def stop(self) -> None:
        """Drain: see the module's text. Returns when everything is settled or handed back; idempotent. Cancelled it
        ends what runs, and leases bring back what is in hand."""
        try:
            await asyncio.gather(*(group.stop_pulling() for group in self._groups))
            await self._end_running()
            # Leases that are renewed no more bound the wait for an engine that cannot settle.
            await ended(self._leases)
            await self._settled()
            await asyncio.gather(*(group.close() for group in self._groups))
        except BaseException:
            for group in self._groups:
                group.abandon()
            raise
        finally:
            self._standstill.end()
            await ended(self._leases, self._settling)

    async def end(self) -> None:
        """End at once, and hand nothing back; after `stop` it does nothing."""
        for group in self._groups:
            group.abandon()
        self._standstill.end()
        await ended(self._leases, self._settling)

    async def _settled(self) -> None:
        """Wait for the last outcomes, unless what settles them has ended (the loop is being torn down)."""
        waiter = asyncio.create_task(self._hands.settled())
        try:
            await asyncio.wait(
                {waiter, self._settling} if self._settling else {waiter}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiter.cancel()

    async def _end_running(self) -> None:
        running = {task: taken for group in self._groups for task, taken in group.running.items()}
        if not running:
            return
        log.info("stopping: %d message(s) in hand, waiting up to %.0f s", len(running), self.grace)
        late = await self._ended_within(self.grace, running)
        for task in late:
            task.cancel()
        for task in await self._ended_within(_CANCEL_WAIT, late):
            log.error("%s ignores that it is cancelled; its lease brings the message back", task.get_name())
            for delivery in running[task]:
                self._hands.drop(delivery)

    async def _ended_within(
        self, seconds: float, tasks: Collection[asyncio.Task[None]]
    ) -> Collection[asyncio.Task[None]]:
        """Wait for the tasks; returns those that still run after the time."""
        over = asyncio.Event()
        timer = self.clock.call_later(seconds, over.set)
        waiter = asyncio.create_task(over.wait())
        try:
            while tasks and not over.is_set():
                await asyncio.wait({*tasks, waiter}, return_when=asyncio.FIRST_COMPLETED)
                tasks = [task for task in tasks if not task.done()]
        finally:
            timer.cancel()
            waiter.cancel()
        return tasks


async def ended(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel tasks of ours and wait for their end."""
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
