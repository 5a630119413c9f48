"""Batch handlers: one call for all messages that wait, up to the batch's size; it never waits for a batch to fill.

A call that raises has done nothing, if it has a transaction: halves are tried, and halves of those that fail, until the
guilty ones are by themselves. One of 256 is found with 17 calls.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ..batch import Batch
from ..engine import Done, Outgoing
from ..logs import message_context
from ..outbox import Relay
from ..unit import Unit
from .calling import TimeUp, answering, being_handled, time_limit
from .each import Each
from .gathering import Gathering, Part, Run
from .handling import Handling, LeaseLost
from .hands import Receiver
from .outage import Away, Outage
from .pace import Pace
from .pool import Pool
from .sharing import Work
from .suspects import Floor
from .together import Together

log = logging.getLogger("tidings.worker")

_SPLITS: Final = 32
"""Calls of one pull that may fail before each of the rest is tried by itself: enough to find four of 256."""


class Batches(Gathering):
    """Runs one group's batch handler on all that was pulled."""

    def __init__(self, handling: Handling, hands: Receiver, relay: Relay | None, floor: Floor, outage: Outage) -> None:
        size = handling.batch
        pace = Pace(handling.handler.options.group, hands.clock, first=size, most=size)
        super().__init__(handling, hands, relay, floor, outage, pace)
        self.concurrency = handling.handler.options.concurrency or 1

    def split(self, part: Part, run: Run, error: BaseException | None = None) -> list[Part]:
        """Each by itself where a call is not to be repeated so often: it leaves behind what it has done outside of a
        transaction, or takes all its time to fail; and where many fail, when that takes fewer calls."""
        run.splits += 1
        singly = self.handling.plan.units is None or isinstance(error, TimeUp) or run.splits > _SPLITS
        return part.singles() if singly else part.halves()

    async def attempt(self, part: Part, run: Run) -> list[Part]:
        units = self.handling.plan.units
        try:
            with (
                message_context(group=self.group, messages=len(part.works)),
                being_handled(None, self.handling.plan.transactional),
            ):
                if units is None:
                    batch = await self._call(part.works, None)
                    await self.handling.publisher.send(self._staged(part.works, batch))
                else:
                    async with units.begin(self.handling.plan.connection, self.group) as unit:
                        batch = await self._transact(unit, part, run)
        except LeaseLost:
            return self.after_lost_lease(part, run)
        except Away as trouble:
            return self.away(trouble, part, run)
        except asyncio.CancelledError as error:
            if self.is_told_to_stop():
                raise
            return await self.failed(RuntimeError(f"the handler raised {error!r}"), part, run, units)
        except SystemExit as error:
            return await self.failed(RuntimeError(f"the handler raised {error!r}"), part, run, units)
        except Exception as error:
            return await self.failed(error, part, run, units)
        self._settle(part.works, batch, run)
        return []

    async def _transact(self, unit: Unit, part: Part, run: Run) -> Batch:
        await self.only_new(unit, part, run)
        works = part.works
        if not works:
            return Batch(())
        batch = await self._call(works, unit)
        part.cut_off = staged = self._staged(works, batch)
        async with answering(self.hands.clock):
            await unit.forget([works[index].key for index in batch.failures])
            await unit.stage(staged)
            await self.handling.check_ours(unit, [work.delivery for work in works])
            await unit.commit()
        if staged and self._relay is not None:
            self._relay.send_soon(staged)
        return batch

    async def _call(self, works: list[Work], unit: Unit | None) -> Batch:
        batch: Batch = Batch([work.message for work in works])
        async with time_limit(self.hands.clock, self.handling.limit):
            await self.handling.run_batch(batch, unit)
        return batch

    def _staged(self, works: list[Work], batch: Batch) -> list[Outgoing]:
        return [
            message
            for index, events in sorted(batch.follow_ups.items())
            if index not in batch.failures
            for message in self.handling.follow_ups(events, works[index].message)
        ]

    def _settle(self, works: list[Work], batch: Batch, run: Run) -> None:
        for index, work in enumerate(works):
            if (error := batch.failures.get(index)) is not None:
                run.settle(self.judged(work, error))
            else:
                self._outage.handled(work.delivery, work.mark)
                run.settle(Done(work.delivery))
        self.pace.clean(len(works))


def runner_of(handling: Handling) -> type[Batches] | type[Together] | type[Pool] | type[Each]:
    """What suits the handler."""
    plan = handling.plan
    if plan.batched:
        return Batches
    if plan.units is not None and handling.handler.options.commit == "group" and plan.units.shares(plan.connection):
        return Together
    return Each if plan.transactional or handling.handler.options.order else Pool
