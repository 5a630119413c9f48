"""Group commit: the messages that wait are handled one after another in one transaction.

    up to N waiting messages ──> one inbox check ──> their handlers ──> one flush, one outbox insert, one commit

It never waits for more messages. A handler that fails before it has touched the database spoils nothing: the others
commit. If anything else fails, all of it is rolled back and tried again with care, from then on and for a while: then a
failure takes back a few messages only, which run again (`trial`). Where that does not help, halves are tried, and
halves of halves. A handler that was cancelled at its time limit runs by itself the next time.

Outside the database a handler's effects may repeat, even without a crash: with `commit="each"` only after one.
"""

from __future__ import annotations

import logging

from ..engine import Delivery, Done, Outgoing
from ..outbox import Relay
from ..unit import Shared, Units
from .calling import answering
from .gathering import Gathering, Part, Run
from .handling import Handling, LeaseLost
from .hands import Receiver
from .outage import Away, Outage
from .pace import Pace
from .sharing import judges
from .suspects import Floor, is_suspect
from .telling import line_of
from .trial import Trial

log = logging.getLogger("tidings.worker")


class Together(Gathering):
    """Runs one group's handler on all that was pulled, with as few transactions as possible."""

    def __init__(self, handling: Handling, hands: Receiver, relay: Relay | None, floor: Floor, outage: Outage) -> None:
        pace = Pace(handling.handler.options.group, hands.clock)
        super().__init__(handling, hands, relay, floor, outage, pace)
        assert handling.plan.units is not None
        self._units: Units = handling.plan.units

    def split(self, part: Part, run: Run, error: BaseException | None = None) -> list[Part]:
        """Once more with care, which finds those that fail; if that is not it, halves."""
        if self.pace.careful:
            return part.halves()
        self.pace.beware()
        return [part]

    def apart(self, delivery: Delivery) -> bool:
        return is_suspect(delivery)

    async def attempt(self, part: Part, run: Run) -> list[Part]:
        try:
            async with self._units.share(self.handling.plan.connection, self.group) as shared:
                trial = await self._tried(shared, part, run)
                if not trial.spoilt:
                    staged = await self._commit(shared, trial, part)
        except LeaseLost:
            return self.after_lost_lease(part, run)
        except Away as trouble:
            return self.away(trouble, part, run)
        except Exception as error:
            return await self.failed(error, part, run, self._units)
        # Its transaction has ended by now: two of them would need two connections.
        if trial.spoilt:
            return await self._after_spoilt(trial, shared, part, run)
        self._settle(trial, staged, run)
        return [Part(trial.late)] if trial.late else []

    async def _tried(self, shared: Shared, part: Part, run: Run) -> Trial:
        await self.only_new(shared, part, run)
        trial = Trial(self.handling, shared, self._units, self.pace, lambda: self.stopping)
        await trial.run(part.works)
        if trial.hurt:
            self.pace.beware()
        if trial.waited:
            self.pace.demote("its handler waits for something besides its database")
        return trial

    async def _commit(self, shared: Shared, trial: Trial, part: Part) -> list[Outgoing]:
        if not trial.done:
            return []
        part.cut_off = staged = [message for _, messages in trial.done for message in messages]
        async with answering(self.hands.clock):
            await shared.forget([work.key for work, _ in trial.failed] + [work.key for work in trial.late])
            await shared.stage(staged)
            await self.handling.check_ours(shared, [work.delivery for work, _ in trial.done])
            await shared.commit()
        return staged

    def _settle(self, trial: Trial, staged: list[Outgoing], run: Run) -> None:
        for work, _ in trial.done:
            self._outage.handled(work.delivery, work.mark)
            run.settle(Done(work.delivery))
        for work, error in trial.failed:
            run.settle(self.judged(work, error))
        if staged and self._relay is not None:
            self._relay.send_soon(staged)
        if not trial.late:
            self.pace.clean(len(trial.done) + len(trial.failed))

    async def _after_spoilt(self, trial: Trial, shared: Shared, part: Part, run: Run) -> list[Part]:
        if shared.interleaved:
            self.pace.interleaved()
            return [part]
        if trial.guilty is None:
            run.spoilt()
            return self.split(part, run)
        guilty, error = trial.guilty
        if isinstance(error, Exception) and self._units.transient(error):
            return await self.failed(error, part, run, self._units)
        if judges(error) and not self.pace.careful:
            log.info("group %s: rolled back, all run again with care: %s", self.group, line_of(error))
            return self.split(part, run, error)
        log.info("group %s: rolled back, one message runs again by itself: %s", self.group, line_of(error))
        run.spoilt()
        run.alone.append(guilty.delivery)
        return [part.without(guilty)]
