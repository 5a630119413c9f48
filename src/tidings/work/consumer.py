"""One group in a worker: pulls as much as its handler has room for, and hands it to what runs the handler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence

from .. import failpoints
from ..engine import Delivery, Engine
from ..errors import Closed, Conflict, EngineError, TidingsError
from ..logs import Lasting
from ..outbox import Relay
from ..rate import Rate, per_second
from .batches import runner_of
from .handling import Handling
from .hands import Receiver
from .outage import Outage
from .suspects import Floor

log = logging.getLogger("tidings.worker")

_PULL_WAIT = 30.0
_MOST_PAUSE = 5.0


class Consumer:
    """Pulls for one group until it is stopped, never more than may begin."""

    def __init__(self, engine: Engine, handling: Handling, hands: Receiver, relay: Relay | None, floor: Floor) -> None:
        self.engine = engine
        self.handling = handling
        self.group = handling.handler.options.group
        self._clock = hands.clock
        self._floor = floor
        self._outage = Outage(self.group, hands.clock)
        self._runner = runner_of(handling)(handling, hands, relay, floor, self._outage)
        rate = handling.handler.options.rate
        self._rate = None if rate is None else Rate(hands.clock, per_second(rate))
        self._task: asyncio.Task[None] | None = None
        self._trouble = Lasting(log, hands.clock)

    @property
    def running(self) -> Mapping[asyncio.Task[None], Collection[Delivery]]:
        """The tasks in which handlers run, and what each has in hand."""
        return self._runner.running

    def start(self) -> None:
        self._task = asyncio.create_task(self._pull_all(), name=f"tidings-pull-{self.group}")

    async def stop_pulling(self) -> None:
        """No more pulls; what the engine has buffered for us goes back at once."""
        if self._task is None:
            return
        self._runner.stop()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        with contextlib.suppress(EngineError):
            await self.engine.stop_pulling(self.group)

    async def close(self) -> None:
        """Nothing of it is in hand any more."""

    def abandon(self) -> None:
        """Cancel all that still runs: its leases bring back what is in hand."""
        self._runner.stop()
        for task in (self._task, *self.running):
            if task is not None:
                task.cancel()

    async def _room(self) -> int:
        """Wait until more may be begun; returns how many."""
        while True:
            await self._outage.turn()
            tokens = await self._rate.turn() if self._rate is not None else None
            await self._floor.opened()
            room = self._runner.room(1 if self._outage.probing else None)
            if room > 0:
                return room if tokens is None else min(tokens, room)
            await self._runner.one_ended()

    async def _pull(self, room: int) -> list[Delivery]:
        """As many as there is room for; more than can begin now only of what is there already."""
        if not self._runner.ahead:
            return await self.engine.pull(self.group, room, _PULL_WAIT)
        deliveries = await self.engine.pull(self.group, room, 0.0)
        if not deliveries:
            self._runner.drained()
        return deliveries

    async def _pull_all(self) -> None:
        pause = 0.1
        deliveries: list[Delivery] | None
        while True:
            room = await self._room()
            try:
                deliveries = await self._pull(room)
            except Closed:
                return
            except TidingsError as error:
                cause = "was it removed?" if isinstance(error, Conflict) else "waiting for the engine"
                self._trouble.met("group %s cannot pull (%s): %s", self.group, cause, error)
                deliveries = None
            except Exception:
                log.critical("group %s cannot pull, by an error of ours; it goes on trying", self.group, exc_info=True)
                deliveries = None
            if deliveries is None:
                await self._clock.sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE)
                continue
            pause = 0.1
            self._trouble.over("group %s pulls again", self.group)
            failpoints.here("pull.ended")
            if self._rate is not None:
                self._rate.take(len(deliveries))
            self._begin(deliveries)

    def _begin(self, deliveries: Sequence[Delivery]) -> None:
        # What has crashed before goes last: it waits for the others, not they for it.
        self._runner.begin(sorted(deliveries, key=lambda delivery: delivery.crashes))
