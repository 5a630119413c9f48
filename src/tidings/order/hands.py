"""What becomes of a delivery of an ordered group when it ends, and of those behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from tidings.engine import Dead, Delivery, Done, Outcome, Park, Release, RetryAfter
from tidings.errors import Closed, Conflict, EngineError
from tidings.work.hands import Hands

from .lanes import Lanes, key_of

log = logging.getLogger("tidings.worker")

_PAGE: Final = 500
_AGAIN: Final = 0.5
_SHORT: Final = 1.0
"""Seconds of a rest for which the later ones of a key stay in hand: to set them aside would take about as long."""


class InOrder:
    """Stands between what runs the handler and the worker's hands.

    What is to be tried again stays in hand; what has to wait behind it, or behind a dead letter, is set aside.
    """

    def __init__(self, hands: Hands, group: str) -> None:
        self.engine = hands.engine
        self.clock = hands.clock
        self.lanes = Lanes()
        self.changed = asyncio.Event()
        self.closing = False
        """Whether everything goes back."""
        self.paused = False
        self.run: Callable[[Sequence[Delivery]], object]
        self.room: Callable[[], int]
        self._hands = hands
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()
        self._sleeping: dict[int, asyncio.Task[None]] = {}
        self._keeping: dict[int, asyncio.Event] = {}

    async def begin(self) -> None:
        """Find out what is parked, at the beginning of a term."""
        lanes, after = Lanes(), 0
        while letters := await self.engine.dead_letters(self._group, after, _PAGE):
            for letter in letters:
                lanes.known_dead(key_of(letter.entry), letter.entry.position)
            after = letters[-1].entry.position
        after = 0
        while entries := await self.engine.parked(self._group, after, _PAGE):
            for entry in entries:
                lanes.known_parked(key_of(entry), entry.position)
            after = entries[-1].position
        self.lanes, self.closing = lanes, False
        self.go_on()

    def accept(self, deliveries: Sequence[Delivery]) -> None:
        """They were pulled."""
        for delivery in deliveries:
            self._hands.take(delivery)
            behind = self.lanes.arrived(delivery)
            if behind is not None:
                self._set_aside(delivery, behind)
            elif id(self.lanes.awaits(delivery)) in self._sleeping:
                self._hands.rests(delivery)
        self.go_on()

    def go_on(self) -> None:
        """Do what follows from what has happened."""
        self.changed.set()
        if self.closing or self.paused:
            return
        room, ready = self.room(), list[Delivery]()
        while len(ready) < room and (delivery := self.lanes.next()) is not None:
            if delivery.dropped:
                log.info("group %s: %d was dropped, what waits behind it follows", self._group, delivery.entry.position)
                self.lanes.done(delivery)
                self._hands.put(Done(delivery))
            else:
                ready.append(delivery)
        if ready:
            self.run(ready)
        for positions in self.lanes.releases():
            self._spawn(self._unpark(positions))

    def hand_back(self) -> None:
        """Give back, at once, all that does not run."""
        self.closing = True
        for delivery in self.lanes.in_hand():
            if (task := self._sleeping.pop(id(delivery), None)) is not None:
                task.cancel()
            if id(delivery) not in self._keeping:
                self._hands.put(Release(delivery))
        self.changed.set()

    def close(self) -> None:
        """Nothing follows any more."""
        for task in self._tasks:
            task.cancel()

    # What runs the handler takes this for the worker's hands.

    def take(self, delivery: Delivery) -> None:
        self._hands.take(delivery)

    def drop(self, delivery: Delivery) -> None:
        self._hands.drop(delivery)
        if self.lanes.runs(delivery):
            for behind in self.lanes.lost(delivery):
                self._set_aside(behind, delivery.entry.position)
        self.go_on()

    def put(self, outcome: Outcome) -> None:
        delivery = outcome.delivery
        if self.closing or not self.lanes.runs(delivery):
            self._hands.put(_at_once(outcome))
        elif isinstance(outcome, RetryAfter | Release):
            self._rest(outcome)
        elif isinstance(outcome, Dead):
            aside = self.lanes.died(delivery)
            self._hands.put(outcome)
            log.warning("group %s: later messages of this key wait behind %d", self._group, delivery.entry.position)
            for behind in aside:
                self._set_aside(behind, delivery.entry.position)
        else:
            self.lanes.done(delivery)
            self._hands.put(outcome)
        self.go_on()

    async def gone(self, delivery: Delivery) -> None:
        if (kept := self._keeping.get(id(delivery))) is not None:
            await kept.wait()
        elif not self.lanes.runs(delivery):
            await self._hands.gone(delivery)

    def _rest(self, outcome: RetryAfter | Release) -> None:
        delivery = outcome.delivery
        for behind in self.lanes.rests(delivery, brief=outcome.delay <= _SHORT):
            self._set_aside(behind, delivery.entry.position)
        self._keeping[id(delivery)] = asyncio.Event()
        self._spawn(self._again(outcome))

    async def _again(self, outcome: RetryAfter | Release) -> None:
        """Keep it, and let it run again when its time has come."""
        delivery = outcome.delivery
        try:
            kept = await self._keep(outcome)
        finally:
            self._keeping.pop(id(delivery)).set()
        if not kept:
            self.drop(delivery)
        elif self.closing:
            self._hands.put(Release(delivery))
        else:
            await self._sleep(delivery, outcome.delay)
            if self.lanes.runs(delivery):
                self.lanes.rested(delivery)
                self.go_on()

    async def _keep(self, outcome: RetryAfter | Release) -> bool:
        """Whether it is still ours."""
        while self.clock.monotonic() < outcome.delivery.deadline:
            try:
                await self.engine.keep(outcome)
            except (Closed, Conflict):
                return False
            except EngineError as error:
                log.warning("an attempt could not be counted yet: %s", error)
                await self.clock.sleep(_AGAIN)
            else:
                return True
        return False

    async def _sleep(self, delivery: Delivery, delay: float) -> None:
        if delay <= 0:
            return
        task = asyncio.current_task()
        assert task is not None
        self._sleeping[id(delivery)] = task
        for each in (delivery, *self.lanes.waiting_for(delivery)):
            self._hands.rests(each)
        try:
            await self.clock.sleep(delay)
        finally:
            self._sleeping.pop(id(delivery), None)
            for each in (delivery, *self.lanes.waiting_for(delivery)):
                self._hands.rested(each)

    def _set_aside(self, delivery: Delivery, behind: int) -> None:
        self._hands.put(Park(delivery, behind))
        self._spawn(self._parked(self.lanes, delivery))

    async def _parked(self, lanes: Lanes, delivery: Delivery) -> None:
        """It may come back only once it is stored. If that failed it is handed out again, and `arrived` sees to it."""
        await self._hands.gone(delivery)
        lanes.parked(delivery)
        self.go_on()

    async def _unpark(self, positions: list[int]) -> None:
        while True:
            try:
                await self.engine.unpark(self._group, positions)
            except Closed:
                return
            except EngineError as error:
                log.warning("group %s: what was parked could not be put back yet: %s", self._group, error)
                await self.clock.sleep(_AGAIN)
            else:
                return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"tidings-order-{self._group}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("group %s: the order is kept by the leases only", self._group, exc_info=error)


def _at_once(outcome: Outcome) -> Outcome:
    """What goes back goes without a delay: what waits for one would hold up the whole group."""
    if isinstance(outcome, RetryAfter):
        return RetryAfter(outcome.delivery, 0.0, outcome.failure)
    return Release(outcome.delivery) if isinstance(outcome, Release) else outcome
