"""Group commit: the messages that wait are handled one after another in one transaction.

    up to N waiting messages ──> one inbox check ──> their handlers ──> one flush, one outbox insert, one commit

It never waits for more messages. If anything fails, all of it is rolled back and the guilty message runs by itself, so
that only there an attempt is counted; where nobody knows which it is, all are tried again with care (below), then
halves, and halves of halves. A handler that fails before it has touched the database spoils nothing: its failure counts
at once, and the others commit. With care, that is with a savepoint around each common insert, the same is true of one
whose rows the database refuses. What has failed before runs by itself, until one of those succeeds.

Outside the database a handler's effects may repeat, even without a crash: with `commit="each"` only after one.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager

from ..engine import Done, Outgoing
from ..outbox import Relay
from ..unit import Shared, Units
from .gathering import Gathering, Part, Run
from .handling import Handling, LeaseLost, answering, line_of
from .hands import Receiver
from .outage import Away, Outage
from .pace import Pace
from .sharing import Round
from .suspects import Floor

log = logging.getLogger("tidings.worker")


class Together(Gathering):
    """Runs one group's handler on all that was pulled, with as few transactions as possible."""

    def __init__(self, handling: Handling, hands: Receiver, relay: Relay | None, floor: Floor, outage: Outage) -> None:
        pace = Pace(handling.handler.options.group, hands.clock)
        super().__init__(handling, hands, relay, floor, outage, pace)
        assert handling.plan.units is not None
        self._units: Units = handling.plan.units

    def split(self, part: Part) -> list[Part]:
        """Once more with care, which finds those whose rows are refused; if that is not it, halves."""
        if self.pace.careful:
            return part.halves()
        self.pace.beware()
        return [part]

    async def attempt(self, part: Part, run: Run) -> list[Part]:
        try:
            async with self._share() as shared:
                round = await self._round(shared, part, run)
                if not round.spoilt:
                    staged = await self._commit(shared, round, part)
                    self._committed(round, staged, run)
                    return [Part(round.late)] if round.late else []
        except LeaseLost:
            return self.after_lost_lease(part, run)
        except Away as trouble:
            return self.away(trouble, part, run)
        except Exception as error:
            return await self.failed(error, part, run, self._units)
        # Its transaction is rolled back by now: two of them would need two connections.
        return await self._after_spoilt(round, shared, part, run)

    def _share(self) -> AbstractAsyncContextManager[Shared]:
        return self._units.share(self.handling.plan.connection, self.group, careful=self.pace.careful)

    async def _round(self, shared: Shared, part: Part, run: Run) -> Round:
        await self.only_new(shared, part, run)
        round = Round(self.handling, shared, part.works, self.pace, lambda: self.stopping)
        try:
            await round.run()
        finally:
            for work, error in round.failed:
                run.settle(self.judged(work, error))
            own = {id(work) for work, _ in round.failed}
            part.works = [work for work in part.works if id(work) not in own]
        if shared.refused:
            self.pace.beware()
        if round.waited:
            self.pace.demote("its handler waits for something besides its database")
        return round

    async def _commit(self, shared: Shared, round: Round, part: Part) -> list[Outgoing]:
        part.cut_off = staged = [message for _, messages in round.done for message in messages]
        async with answering(self.hands.clock):
            await shared.forget([work.key for work, _ in round.failed] + [work.key for work in round.late])
            await shared.stage(staged)
            await self.handling.check_ours(shared, [work.delivery for work, _ in round.done])
            await shared.commit()
        return staged

    def _committed(self, round: Round, staged: list[Outgoing], run: Run) -> None:
        for work, _ in round.done:
            self._outage.handled(work.delivery, work.mark)
            run.settle(Done(work.delivery))
        if staged and self._relay is not None:
            self._relay.send_soon(staged)
        if not round.late:
            self.pace.clean(len(round.done))

    async def _after_spoilt(self, round: Round, shared: Shared, part: Part, run: Run) -> list[Part]:
        if shared.interleaved:
            self.pace.interleaved()
            return [part]
        if round.guilty is None:
            run.spoilt()
            return self.split(part)
        guilty, error = round.guilty
        if isinstance(error, Exception) and self._units.transient(error):
            return await self.failed(error, part, run, self._units)
        log.info("rolled back, the message runs again by itself: %s", line_of(error))
        run.spoilt()
        run.alone.append(guilty.delivery)
        return [part.without(guilty)]
