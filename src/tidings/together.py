"""Group commit: the messages that wait are handled one after another in one transaction.

    up to N waiting messages ──> one inbox check ──> their handlers ──> one flush, one outbox insert, one commit

It never waits for more messages. If anything fails, all of it is rolled back and the guilty message runs by itself, so
that only there an attempt is counted; where nobody knows which it is, halves are tried, and halves of halves. A handler
that fails before it has touched the database spoils nothing: its failure counts at once, and the others commit.

Outside the database a handler's effects may repeat, even without a crash: with `commit="each"` only after one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence

from .each import Each
from .engine import Delivery, Done, Outcome, Outgoing, Release
from .handling import Handling, LeaseLost, answering, line_of
from .hands import Hands
from .message import Message
from .outage import Away, Outage
from .outbox import Relay
from .pace import Pace
from .sharing import Round, Work
from .suspects import Floor, is_suspect
from .unit import InboxKey, Shared, Units

log = logging.getLogger("tidings.worker")

_RERUNS = 3


class Part:
    """Messages that are to share a transaction, and how often they have lost against another one."""

    def __init__(self, works: Sequence[Work], reruns: int = 0) -> None:
        self.works = list(works)
        self.reruns = reruns

    def halves(self) -> list[Part]:
        middle = len(self.works) // 2
        return [Part(self.works[:middle]), Part(self.works[middle:])]

    def without(self, guilty: Work) -> Part:
        return Part([work for work in self.works if work is not guilty])


class Together(Each):
    """Runs one group's handler on all that was pulled, with as few transactions as possible."""

    def __init__(self, handling: Handling, hands: Hands, relay: Relay | None, floor: Floor, outage: Outage) -> None:
        super().__init__(handling, hands, relay, floor, outage)
        self.pace = Pace(self.group, hands.clock)
        self.hands = hands
        self.floor = floor
        assert handling.plan.units is not None
        self._units: Units = handling.plan.units

    def room(self, most: int | None = None) -> int:
        free = super().room(most)
        return self.pace.size if free > 0 and most is None and self.pace.together else free

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        if len(deliveries) == 1:
            super().begin(deliveries)
            return
        for delivery in deliveries:
            self.hands.take(delivery)
        run = _Run(self, deliveries)
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

    def begun(self, delivery: Delivery) -> Work | Outcome | None:
        """The delivery as work for a group; its outcome if there is none; None if it has to run by itself."""
        if is_suspect(delivery) or (self.pace.wary and delivery.attempts > 0):
            return None
        message = self.handling.read(delivery)
        return Work(delivery, message, self._outage.begun()) if isinstance(message, Message) else message

    async def attempt(self, part: Part, run: _Run) -> list[Part]:
        """Run these in one transaction; returns what is to be tried again, and how."""
        try:
            async with self._units.share(self.handling.plan.connection) as shared:
                round = await self._round(shared, part, run)
                if not round.spoilt:
                    staged = await self._commit(shared, round)
                    self._committed(round, staged, run)
                    return [Part(round.late)] if round.late else []
        except LeaseLost:
            log.warning("a lease ended before the commit: nothing is committed, the others run again")
            return [Part([work for work in part.works if run.keeps(work)])]
        except Away as trouble:
            return self._away(trouble, part, run)
        except Exception as error:
            return await self._after_error(error, part, run)
        # Its transaction is rolled back by now: two of them would need two connections.
        return await self._after_spoilt(round, shared, part, run)

    async def _round(self, shared: Shared, part: Part, run: _Run) -> Round:
        async with answering(self.hands.clock):
            fresh = await shared.fresh([work.key for work in part.works])
        for work in part.works:
            if work.key not in fresh:
                log.info("handled before, nothing done")
                run.settle(Done(work.delivery))
        part.works = [work for work in part.works if work.key in fresh]
        round = Round(self.handling, shared, part.works, self.pace, lambda: self.stopping)
        try:
            await round.run()
        finally:
            for work, error in round.failed:
                run.settle(self._judged(work, error))
            own = {id(work) for work, _ in round.failed}
            part.works = [work for work in part.works if id(work) not in own]
        if round.waited:
            self.pace.demote("its handler waits for something besides its database")
        return round

    async def _commit(self, shared: Shared, round: Round) -> list[Outgoing]:
        not_handled: list[InboxKey] = [work.key for work, _ in round.failed] + [work.key for work in round.late]
        staged = [message for _, messages in round.done for message in messages]
        async with answering(self.hands.clock):
            await shared.flush(())
            await shared.forget(not_handled)
            await shared.stage(staged)
            deadlines = [work.delivery.deadline for work, _ in round.done]
            if deadlines and self.hands.clock.monotonic() >= min(deadlines):
                raise LeaseLost
            await shared.commit()
        return staged

    def _committed(self, round: Round, staged: list[Outgoing], run: _Run) -> None:
        for work, _ in round.done:
            self._outage.handled(work.delivery, work.mark)
            run.settle(Done(work.delivery))
        if staged and self._relay is not None:
            self._relay.send_soon(staged)
        if not round.late:
            self.pace.clean(len(round.done))

    def _judged(self, work: Work, error: BaseException) -> Outcome:
        try:
            return self.handling.judged(work.delivery, error)
        except Away as trouble:
            return self._after(trouble, work.delivery, work.mark)

    async def _after_spoilt(self, round: Round, shared: Shared, part: Part, run: _Run) -> list[Part]:
        if shared.interleaved:
            self.pace.interleaved()
            return [part]
        if round.guilty is None:
            self.pace.spoilt()
            return part.halves()
        guilty, error = round.guilty
        if isinstance(error, Exception) and self._units.transient(error):
            return await self._after_error(error, part, run)
        log.info("rolled back, the message runs again by itself: %s", line_of(error))
        self.pace.spoilt(wary=True)
        run.alone.append(guilty.delivery)
        return [part.without(guilty)]

    async def _after_error(self, error: Exception, part: Part, run: _Run) -> list[Part]:
        """The database says it, of all of them together."""
        if self._units.transient(error):
            part.reruns += 1
            if part.reruns == 1 or (self._units.conflict(error) and part.reruns <= _RERUNS):
                log.info("the transaction of %d messages runs again: %s", len(part.works), line_of(error))
                if part.reruns > 1:
                    await self.hands.clock.sleep(random.uniform(0.0, 0.02 * part.reruns))  # noqa: S311
                return [part]
            if not self._units.conflict(error):
                return self._away(Away(error, sure=True), part, run)
        log.info("the transaction of %d messages failed, they run again in halves: %s", len(part.works), line_of(error))
        self.pace.spoilt()
        return part.halves()

    def _away(self, trouble: Away, part: Part, run: _Run) -> list[Part]:
        for work in part.works:
            run.settle(self._after(trouble, work.delivery, work.mark))
        return []


class _Run:
    """What was pulled together, until the last of it has its outcome."""

    def __init__(self, runner: Together, deliveries: Sequence[Delivery]) -> None:
        self.left = {id(delivery): delivery for delivery in deliveries}
        """In hand, and without an outcome."""
        self.alone: list[Delivery] = []
        """To be handled by themselves, in this order."""
        self._runner = runner

    def settle(self, outcome: Outcome) -> None:
        self._forget(outcome.delivery)
        self._runner.hands.put(outcome)

    def keeps(self, work: Work) -> bool:
        """Whether the lease still holds; if not, somebody else gets it."""
        if self._runner.handling.clock.monotonic() < work.delivery.deadline:
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
