"""Handlers of many messages in one transaction, in turns.

This file knows what happened to whom; how much of the transaction it concerns is said in `trial`, and what becomes of
it in `together`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from ..engine import Delivery, Outgoing
from ..logs import name_message
from ..message import Message, current_message
from ..unit import InboxKey, Member, Shared
from .calling import TimeUp, answering, in_transaction
from .handling import Handling
from .pace import Pace
from .turns import Turns, watched


class Work(msgspec.Struct, eq=False, gc=False):
    """One message that is to be handled with others."""

    delivery: Delivery
    message: Message[Any]
    key: InboxKey
    mark: int
    waits: bool = False
    """Whether it waits for the others and not for something of its own."""

    def named(self) -> dict[str, Any]:
        """What log lines say of it."""
        message = self.message
        return {
            "message_id": message.id,
            "subject": message.subject,
            "group": message.group,
            "attempt": self.delivery.attempts + 1,
        }


class Round:
    """Handlers that share flushes. Cancelling `run` cancels those that have begun and waits for them."""

    def __init__(
        self,
        handling: Handling,
        shared: Shared,
        works: Sequence[Work],
        pace: Pace,
        enough: Callable[[bool], bool],
        *,
        marked: bool,
    ) -> None:
        self.done: list[tuple[Work, list[Outgoing]]] = []
        self._members: dict[Member, Work] = {}
        """Whose each of them is that has ended well."""
        self.failed: list[tuple[Work, BaseException]] = []
        """What failed by itself and has left no trace in the transaction."""
        self.late: list[Work] = []
        """What was not begun, because there was enough before it."""
        self.traces: list[tuple[Work, BaseException]] = []
        """What failed by itself and has left rows: behind a savepoint, where the others go on, as more may fail."""
        self.spoilt = False
        """Whether nothing of it may be kept."""
        self.guilty: tuple[Work, BaseException] | None = None
        """Why, if it is known."""
        self.waited = False
        """Whether a handler has waited for something besides its database."""
        self._handling = handling
        self._shared = shared
        self._works = works
        self._pace = pace
        self._enough = enough
        self._marked = marked
        self._clock = handling.clock
        self._turns = Turns()
        self._meeting: list[Member] = []
        self._active: Work | None = None
        self._since = 0.0

    async def run(self) -> None:
        """Run them all, as far as it makes sense. Raises what the database says of a common flush, and `Away`."""
        self._turns.expect(len(self._works))
        tasks = [asyncio.create_task(self._one(work)) for work in self._works]
        timer = self._clock.call_later(self._handling.limit, self._check_time)
        try:
            while True:
                await self._turns.quiet()
                if self.spoilt:
                    break
                met, self._meeting = self._meeting, []
                async with answering(self._clock):
                    await self._shared.flush(met)
                if not met:
                    self._take_back()
                    break
                self._turns.resume()
        finally:
            timer.cancel()
            self._turns.close()
            begun = [task for task in tasks if not task.done()]
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)

    async def _one(self, work: Work) -> None:
        try:
            await self._turns.take()
        except asyncio.CancelledError:
            self._turns.left()
            raise
        try:
            if self.spoilt or self._enough(bool(self.done)):
                self.late.append(work)
            else:
                self._active, self._since = work, self._clock.monotonic()
                await self._handle(work)
        finally:
            self._active = None
            self._turns.end()

    async def _handle(self, work: Work) -> None:
        """In a context of its own."""
        name_message(work.named)
        current_message.set(work.message)
        in_transaction.set(True)
        member = self._shared.member(partial(self._meet, work) if self._pace.meets else None)
        try:
            result = await self._called(work, member)
            staged = self._handling.follow_ups(result, work.message) if result is not None else []
            await member.join()
        except (Exception, asyncio.CancelledError, SystemExit) as error:
            self._failed(work, member, error)
            return
        self._pace.took(self._clock.monotonic() - self._since)
        self.done.append((work, staged))
        self._members[member] = work

    async def _called(self, work: Work, member: Member) -> Any:
        run = self._handling.run(work.message, member)
        if self._handling.plan.is_async:
            return await watched(run, partial(self._waits, work))
        return await run

    def _waits(self, work: Work) -> None:
        if not (work.waits or self._shared.busy):
            self.waited = True

    async def _meet(self, work: Work, member: Member) -> None:
        """Its handler waits for the common flush; the time it waits is not its own."""
        spent = self._clock.monotonic() - self._since
        self._meeting.append(member)
        work.waits, self._active = True, None
        try:
            await self._turns.meet()
        except asyncio.CancelledError:
            if member in self._meeting:
                self._meeting.remove(member)
            raise
        finally:
            work.waits, self._active = False, work
            self._since = self._clock.monotonic() - spent

    def _failed(self, work: Work, member: Member, error: BaseException) -> None:
        if self._turns.closed:
            if isinstance(error, asyncio.CancelledError):
                raise error
            return
        if self._shared.interleaved or self._shared.broken:
            self._spoil(None)
        elif member.pure:
            self.failed.append((work, error))
        elif self._marked and member.blind and judges(error):
            self.traces.append((work, error))
        else:
            self._spoil((work, error))

    def _take_back(self) -> None:
        """What had ended well, but is refused by the database."""
        refused = [(self._members[member], error) for member, error in self._shared.refused]
        self.failed.extend(refused)
        gone = {id(work) for work, _ in refused}
        self.done = [(work, staged) for work, staged in self.done if id(work) not in gone]

    def _spoil(self, guilty: tuple[Work, BaseException] | None) -> None:
        if not self.spoilt:
            self.spoilt, self.guilty = True, guilty
            self._turns.close()

    def _check_time(self) -> None:
        limit = self._handling.limit
        taken = 0.0 if self._active is None else self._clock.monotonic() - self._since
        if self._active is not None and taken >= limit:
            self._spoil((self._active, TimeUp(f"the handler was still running after {limit:g} s")))
        elif not self._turns.closed:
            self._clock.call_later(limit - taken, self._check_time)


def judges(error: BaseException) -> bool:
    """Whether the error says something of its message, and nothing of what its connection was left in: a handler that
    was cancelled may have been in the middle of a statement."""
    return isinstance(error, Exception) and not isinstance(error, TimeUp)
