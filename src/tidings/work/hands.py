"""The deliveries in a worker's hands: their leases, and the outcomes on their way to the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final, Protocol

from .. import failpoints
from ..clock import Clock
from ..engine import Delivery, Done, Engine, Outcome
from ..errors import Closed, EngineError, EngineUnavailable, NotAllowed, Unconfirmed
from ..logs import Lasting

log = logging.getLogger("tidings.worker")

_AGAIN: Final = 1.0
"""Seconds after which the engine is asked again about what it refuses."""


class Receiver(Protocol):
    """Where what runs a handler leaves the outcomes."""

    engine: Engine
    clock: Clock

    def take(self, delivery: Delivery) -> None: ...

    def drop(self, delivery: Delivery) -> None:
        """Give up a delivery without an outcome: its lease brings it back."""
        ...

    def put(self, outcome: Outcome) -> None: ...

    async def gone(self, delivery: Delivery) -> None:
        """Wait until the outcome is stored, or the delivery given up."""
        ...


class Hands:
    """Everything that the groups of one worker have taken and not settled yet."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.on_settled: Callable[[Sequence[Outcome]], None] = lambda _: None
        """Called with outcomes that are settled."""
        self.held: dict[int, Delivery] = {}
        self._resting: dict[int, Delivery] = {}
        self._handled, self._others = _Queue(), _Queue()
        self._waiting: dict[int, asyncio.Event] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._renewing, self._settling = Lasting(log, clock), Lasting(log, clock)

    @property
    def busy(self) -> bool:
        """Whether anything is in hand that does not just wait for its time."""
        return len(self.held) > len(self._resting)

    @property
    def resting(self) -> Collection[Delivery]:
        """What is in hand and just waits for its time."""
        return self._resting.values()

    def rests(self, delivery: Delivery) -> None:
        """It waits here for its next try, or for that of the one before it."""
        self._resting[id(delivery)] = delivery

    def rested(self, delivery: Delivery) -> None:
        """Its time has come, or it goes back."""
        self._resting.pop(id(delivery), None)

    def take(self, delivery: Delivery) -> None:
        self.held[id(delivery)] = delivery
        self._empty.clear()

    def drop(self, delivery: Delivery) -> None:
        """Give up a delivery without an outcome: its lease brings it back."""
        self.held.pop(id(delivery), None)
        self._resting.pop(id(delivery), None)
        self._tell(delivery)
        if not self.held:
            self._empty.set()

    def _tell(self, delivery: Delivery) -> None:
        if (waiting := self._waiting.pop(id(delivery), None)) is not None:
            waiting.set()

    def put(self, outcome: Outcome) -> None:
        queue = self._handled if isinstance(outcome, Done) else self._others
        queue.outcomes.append(outcome)
        queue.something.set()

    async def gone(self, delivery: Delivery) -> None:
        """Wait until the delivery is settled or given up."""
        if id(delivery) in self.held:
            await self._waiting.setdefault(id(delivery), asyncio.Event()).wait()

    async def settled(self) -> None:
        """Wait until nothing is in hand; leases bound the wait when the engine is away."""
        await self._empty.wait()

    async def keep_leases(self, lease: float) -> None:
        """Renew every third of the lease, so that two renewals may fail before it ends. What has just come can wait:
        so quick handlers pay nothing."""
        while True:
            await self.clock.sleep(lease / 3)
            late = self.clock.monotonic() + lease * 3 / 4
            old = [delivery for delivery in self.held.values() if delivery.deadline < late]
            if not old:
                continue
            try:
                await self.engine.extend(old)
                self._renewing.over("leases are renewed again")
            except EngineError as error:
                self._renewing.met("%d leases could not be renewed: %s", len(old), error)
            except Exception:
                log.critical("leases could not be renewed, by an error of ours; the next renewal tries", exc_info=True)

    async def settle_all(self) -> None:
        """Settle what handlers decided, everything that has gathered in one call. What was handled waits for nothing
        that has to be stored: on a full server that would keep the space it takes."""
        await asyncio.gather(self._settle_queue(self._handled), self._settle_queue(self._others))

    async def _settle_queue(self, queue: _Queue) -> None:
        while True:
            await queue.something.wait()
            queue.something.clear()
            batch, queue.outcomes = queue.outcomes, []
            refused: list[Outcome] = []
            try:
                refused = await self._settle(batch)
            except Exception:
                log.critical("the worker itself failed to settle; the leases bring the messages back", exc_info=True)
            finally:
                for outcome in batch:
                    if outcome not in refused:
                        self.drop(outcome.delivery)
            if refused:
                self.clock.call_later(_AGAIN, partial(queue.again, refused))

    async def _settle(self, batch: list[Outcome]) -> list[Outcome]:
        """Returns those that the engine refuses: it answers, and so these must not hold up others."""
        pause = 0.1
        while batch := self._in_time(batch):
            try:
                await self._settle_at_once(batch)
                break
            except Closed:
                break
            except EngineError as error:
                self._settling.met("%d outcomes could not be settled yet: %s", len(batch), error)
                if _answers(error):
                    return await self._settle_each(batch)
                await self.clock.sleep(pause)
                pause = min(2 * pause, _AGAIN)
        return []

    async def _settle_at_once(self, batch: list[Outcome]) -> None:
        failpoints.here("settle.begun")
        await self.engine.settle(batch)
        self._settling.over("outcomes are settled again")
        failpoints.here("settle.ended")
        self.on_settled(batch)

    async def _settle_each(self, batch: list[Outcome]) -> list[Outcome]:
        """Find out which of them the engine refuses."""
        if len(batch) == 1:
            return batch
        refused: list[Outcome] = []
        for number, outcome in enumerate(batch):
            try:
                await self._settle_at_once(self._in_time([outcome]))
            except Closed:
                return []
            except EngineError as error:
                if not _answers(error):
                    return refused + batch[number:]
                refused.append(outcome)
        return refused

    def _in_time(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Past its deadline a delivery may be somebody else's: an ack now could end the other's work."""
        now = self.clock.monotonic()
        return [outcome for outcome in outcomes if now < outcome.delivery.deadline]


def _answers(error: EngineError) -> bool:
    """Whether somebody has refused, instead of not being there."""
    return isinstance(error, NotAllowed) or not isinstance(error, EngineUnavailable | Unconfirmed)


class _Queue:
    """Outcomes that wait to be settled."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.something = asyncio.Event()

    def again(self, outcomes: Iterable[Outcome]) -> None:
        self.outcomes.extend(outcomes)
        self.something.set()
