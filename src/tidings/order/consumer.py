"""An ordered group's worker: waits until it is the active one, then pulls, and lets run what may."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from tidings import claims
from tidings.engine import Delivery, Engine
from tidings.errors import Closed, EngineError
from tidings.logs import Lasting
from tidings.outbox import Relay
from tidings.work.consumer import Consumer
from tidings.work.handling import Handling
from tidings.work.hands import Hands
from tidings.work.suspects import Floor

from .election import Election, Reign
from .hands import InOrder

log = logging.getLogger("tidings.worker")

_AHEAD: Final = 16
_MOST_RESTING: Final = 1000
_CANCEL_WAIT: Final = 5.0
_PAUSE: Final = 1.0


class OrderedConsumer(Consumer):
    """A `Consumer` that pulls only while it is the active one of its group."""

    def __init__(
        self, engine: Engine, handling: Handling, hands: Hands, relay: Relay | None, floor: Floor, *, lease: float
    ) -> None:
        self._order = InOrder(hands, handling.handler.options.group)
        super().__init__(engine, handling, self._order, relay, floor)
        self._order.run = self._runner.begin
        self._order.room = lambda: self._runner.room(1 if self._outage.probing else None)
        self._hands = hands
        self._lease = lease
        self._election = Election(engine, self.group, clock=hands.clock, lease=lease)
        self._quiet: tuple[float, frozenset[int]] | None = None
        """Since when every pull has ended with nothing, and which messages keys have been waiting for since then."""
        self._reign: Reign | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._waiting = Lasting(log, hands.clock)
        """For the database."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._serve_all(), name=f"tidings-order-{self.group}")

    async def stop_pulling(self) -> None:
        """As of any group; this worker stays the active one until `close`, so that what runs may still commit."""
        self._order.closing = True
        await super().stop_pulling()
        self._order.hand_back()

    async def close(self) -> None:
        """What ran has ended: let the next one be active."""
        self._order.close()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._reign is not None:
            await self._election.resign(self._reign)
            self._reign = None

    def abandon(self) -> None:
        self._order.closing = True
        super().abandon()
        self._order.close()
        if self._keeping is not None:
            self._keeping.cancel()

    async def _serve_all(self) -> None:
        while True:
            try:
                self._reign = reign = await self._election.win()
            except Closed:
                return
            log.info("group %s: this worker is the active one (epoch %d)", self.group, reign.epoch)
            self._keeping = asyncio.create_task(self._election.keep(reign), name=f"tidings-active-{self.group}")
            await self._while_active(reign)
            await self._step_down(reign)
            await self._clock.sleep(_PAUSE)

    async def _while_active(self, reign: Reign) -> None:
        """Work until the term is over. Cancelled, the term goes on until `close`."""
        assert self._keeping is not None
        working = asyncio.create_task(self._work(reign), name=f"tidings-pull-{self.group}")
        try:
            await asyncio.wait({working, self._keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            [error] = await asyncio.gather(working, return_exceptions=True)
            if isinstance(error, Exception):
                log.critical("group %s: the active worker gives up, by an error of ours", self.group, exc_info=error)

    async def _step_down(self, reign: Reign) -> None:
        """Stop what runs: somebody else may be active, or soon will be."""
        log.warning("group %s: this worker is not the active one any more", self.group)
        self._order.closing = self._runner.stopping = True
        running = dict(self._runner.running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=_CANCEL_WAIT)
        for task, deliveries in running.items():
            for delivery in [] if task.done() else list(deliveries):
                self._hands.drop(delivery)
        self._order.hand_back()
        with contextlib.suppress(EngineError):
            await self.engine.stop_pulling(self.group)
        self._runner.stopping = False
        await self.close()

    async def _work(self, reign: Reign) -> None:
        await self._enter(reign)
        await self._order.begin()
        self._quiet = None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_ends())
            tasks.create_task(self._follow_pauses())
            tasks.create_task(self._pull_all())

    async def _enter(self, reign: Reign) -> None:
        """Shut out, in the database, whoever was active before. A database that knows a later epoch is from another
        life of the namespace: the record follows it."""
        units = self.handling.plan.units
        if units is None:
            return
        name = f"{self.handling.namespace}/{self.group}"
        while True:
            try:
                latest = await units.enter(name, reign.epoch)
            except Exception as error:
                self._waiting.met("group %s: waiting for the database (%s)", self.group, error)
                await self._clock.sleep(_PAUSE)
                continue
            self._waiting.over("group %s: the database answers again", self.group)
            if latest <= reign.epoch:
                self.handling.fence = (name, reign.epoch)
                return
            await self._election.raised(reign, latest + 1)

    async def _follow_ends(self) -> None:
        while True:
            await self._runner.one_ended()
            self._order.go_on()

    async def _follow_pauses(self) -> None:
        """What is in hand does not begin while the group is paused."""
        while True:
            with contextlib.suppress(EngineError):
                ledger, _ = await claims.load(self.engine)
                claimant = ledger.groups.get(self.group)
                self._order.paused = claimant is not None and claimant.paused
                self._order.go_on()
            await self._clock.sleep(min(_PAUSE, self._lease / 10))

    async def _room(self) -> int:
        while True:
            await self._outage.turn()
            tokens = await self._rate.turn() if self._rate is not None else None
            await self._floor.opened()
            room = self._free()
            if room > 0:
                return room if tokens is None else min(tokens, room)
            self._order.changed.clear()
            await self._order.changed.wait()

    def _free(self) -> int:
        """How many more to take in hand: enough to find keys that may run, while others wait for theirs."""
        lanes = self._order.lanes
        if self._outage.probing:
            return 1 - lanes.busy
        if lanes.resting >= _MOST_RESTING:
            return 0
        return max(_AHEAD, 2 * self._runner.concurrency, 2 * self._runner.room()) - lanes.busy

    def _begin(self, deliveries: Sequence[Delivery]) -> None:
        self._look_for_gaps(came=bool(deliveries))
        self._order.accept(deliveries)

    def _look_for_gaps(self, *, came: bool) -> None:
        """Raise when keys wait for messages that do not come, although nothing else does for two leases: the term ends,
        and the next one begins with what is really there."""
        if came or self._order.paused:
            self._quiet = None
            return
        now, awaited = self._clock.monotonic(), self._order.lanes.awaited
        since, before = self._quiet or (now, awaited)
        missing = before & awaited
        self._quiet = (since, missing) if missing else (now, awaited)
        if missing and now - since > 2 * self._lease:
            raise RuntimeError(
                f"{len(missing)} messages were to be handed out again and are not, the oldest is {min(missing)}"
            )
