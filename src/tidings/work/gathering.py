"""Messages that were pulled together and are tried together; whoever fails, or may harm the others, runs by itself.

What "together" means is said by the two that build on this: `together` (one transaction for the handler's calls) and
`batches` (one call of the handler).
"""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..engine import Delivery, Done, Outcome, Outgoing, Release
from ..logs import message_context
from ..message import Message
from ..outbox import Relay
from ..unit import InboxKey, Shared, Unit, Units
from .calling import answering
from .each import Each
from .handling import Handling, inbox_key
from .hands import Receiver
from .outage import Away, Outage
from .pace import Pace
from .sharing import Work
from .suspects import Floor, is_suspect
from .telling import line_of

log = logging.getLogger("tidings.worker")

_RERUNS = 3


class Part:
    """Messages that are to be tried together, and how often they have lost against another transaction."""

    def __init__(self, works: Sequence[Work]) -> None:
        self.works = list(works)
        self.reruns = 0
        self.cut_off: list[Outgoing] = []
        """What was staged when a commit failed: it may be there all the same."""

    def halves(self) -> list[Part]:
        middle = len(self.works) // 2
        return [Part(self.works[:middle]), Part(self.works[middle:])]

    def singles(self) -> list[Part]:
        return [Part([work]) for work in self.works]

    def without(self, guilty: Work) -> Part:
        return Part([work for work in self.works if work is not guilty])


class Gathering(Each, ABC):
    """Runs one group's handler on all that was pulled."""

    def __init__(
        self, handling: Handling, hands: Receiver, relay: Relay | None, floor: Floor, outage: Outage, pace: Pace
    ) -> None:
        super().__init__(handling, hands, relay, floor, outage)
        self.pace = pace
        self.hands = hands
        self.floor = floor

    @abstractmethod
    async def attempt(self, part: Part, run: Run) -> list[Part]:
        """Try these together, and settle what becomes of them; returns what is to be tried again, and how."""

    @abstractmethod
    def split(self, part: Part, run: Run, error: BaseException | None = None) -> list[Part]:
        """How to go on when one of them has failed, perhaps with this error, and nobody knows which."""

    def room(self, most: int | None = None) -> int:
        free = super().room(most)
        return self.pace.size if free > 0 and most is None and self.pace.together else free

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        if len(deliveries) == 1:
            super().begin(deliveries)
            return
        for delivery in deliveries:
            self.hands.take(delivery)
        run = Run(self, deliveries)
        task = asyncio.create_task(run.all(), name=f"tidings-handle-{self.group}")
        self.running[task] = run.left.values()
        task.add_done_callback(self._ended)

    async def one(self, delivery: Delivery) -> None:
        """Handle it by itself. Cancelled, it is cancelled too and waited for."""
        super().begin((delivery,))
        task = next(reversed(self.running))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise

    async def _outcome(self, delivery: Delivery, message: Message[Any], mark: int) -> Outcome:
        outcome = await super()._outcome(delivery, message, mark)
        if delivery.attempts > 0 and not isinstance(outcome, Release):
            self.pace.tried_again(isinstance(outcome, Done))
        return outcome

    def begun(self, delivery: Delivery) -> Work | Outcome | None:
        """The delivery as work to be done with others; its outcome if it has one already; None if it has to run by
        itself."""
        if self.apart(delivery):
            return None
        message = self.handling.read(delivery)
        if not isinstance(message, Message):
            return message
        return Work(delivery, message, inbox_key(message), self._outage.begun())

    def apart(self, delivery: Delivery) -> bool:
        """Whether it is not to be tried with others."""
        return is_suspect(delivery) or (self.pace.wary and delivery.attempts > 0)

    async def only_new(self, unit: Unit | Shared, part: Part, run: Run) -> None:
        """Mark all as handled, and leave in the part those that were not."""
        async with answering(self.hands.clock):
            fresh = await unit.fresh([work.key for work in part.works])
        if len(fresh) < len(part.works):
            for work in part.works:
                if work.key not in fresh:
                    log.info("handled before, nothing done")
                    run.settle(Done(work.delivery))
            part.works = [work for work in part.works if work.key in fresh]
        if part.cut_off and self._relay is not None:
            self._relay.look_soon(part.cut_off)
        part.cut_off = []

    def judged(self, work: Work, error: BaseException) -> Outcome:
        """What becomes of one that has failed by itself."""
        with message_context(**work.named()):
            try:
                return self.handling.judged(work.delivery, error)
            except Away as trouble:
                return self._after(trouble, work.delivery, work.mark)

    def away(self, trouble: Away, part: Part, run: Run) -> list[Part]:
        """What all of them need is not there."""
        for work in part.works:
            run.settle(self._after(trouble, work.delivery, work.mark))
        return []

    async def failed(self, error: Exception, part: Part, run: Run, units: Units | None) -> list[Part]:
        """It may be the fault of any of them, or of none."""
        if units is not None and units.transient(error):
            part.reruns += 1
            if part.reruns == 1 or (units.conflict(error) and part.reruns <= _RERUNS):
                log.info(
                    "group %s: the transaction of %d messages runs again: %s",
                    self.group,
                    len(part.works),
                    line_of(error),
                )
                await asyncio.sleep(random.uniform(0.0, 0.02 * part.reruns))  # noqa: S311
                return [part]
            if not units.conflict(error):
                return self.away(Away(error, sure=True), part, run)
        log.info(
            "group %s: %d messages failed together, they run again in smaller parts: %s",
            self.group,
            len(part.works),
            line_of(error),
        )
        run.spoilt()
        return self.split(part, run, error)

    def after_lost_lease(self, part: Part, run: Run) -> list[Part]:
        """Nothing was committed: those whose lease holds are tried again."""
        log.warning("group %s: a lease ended before the commit: nothing is committed, the others run again", self.group)
        return [Part([work for work in part.works if run.keeps(work)])]


class Run:
    """What was pulled together, until the last of it has its outcome."""

    def __init__(self, runner: Gathering, deliveries: Sequence[Delivery]) -> None:
        self.left = {id(delivery): delivery for delivery in deliveries}
        """In hand, and without an outcome."""
        self.alone: list[Delivery] = []
        """To be handled by themselves, in this order."""
        self.splits = 0
        """How often some of them had to be told apart."""
        self._runner = runner
        self._spoilt = False

    def spoilt(self) -> None:
        """Some of them had to be rolled back."""
        if not self._spoilt:
            self._spoilt = True
            self._runner.pace.spoilt()

    def settle(self, outcome: Outcome) -> None:
        """Say what becomes of one of them."""
        self._forget(outcome.delivery)
        self._runner.hands.put(outcome)

    def keeps(self, work: Work) -> bool:
        """Whether the lease still holds; if not, somebody else gets it."""
        if self._runner.hands.clock.monotonic() < work.delivery.deadline:
            return True
        self._forget(work.delivery)
        self._runner.hands.drop(work.delivery)
        return False

    async def all(self) -> None:
        """Handle them all, whatever it takes."""
        try:
            async with self._runner.floor.shared():
                await self._together(self._works())
            for delivery in self.alone:
                if self._runner.stopping:
                    break
                self._forget(delivery)
                await self._runner.one(delivery)
        finally:
            # Only a worker that stops, or an error of ours, leaves any.
            for delivery in list(self.left.values()):
                self.settle(Release(delivery, delay=0.0 if self._runner.stopping else 1.0))

    def _works(self) -> list[Work]:
        works: dict[InboxKey, Work] = {}
        for delivery in list(self.left.values()):
            work = self._runner.begun(delivery)
            if work is None or (isinstance(work, Work) and work.key in works):
                self.alone.append(delivery)
            elif isinstance(work, Work):
                works[work.key] = work
            else:
                self.settle(work)
        return list(works.values())

    async def _together(self, works: list[Work]) -> None:
        parts = deque([Part(works)])
        while parts:
            part = parts.popleft()
            if self._runner.stopping:
                continue
            if len(part.works) > 1 and self._runner.pace.together:
                parts.extendleft(reversed(await self._runner.attempt(part, self)))
            else:
                self.alone.extend(work.delivery for work in part.works)

    def _forget(self, delivery: Delivery) -> None:
        self.left.pop(id(delivery), None)
