"""What happens to one delivery in its handler: decode, begin, call, follow up, commit; and what becomes of it.

This file decides outcomes and never talks to the engine about them: the worker settles.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import types
import typing
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from .. import failpoints
from ..batch import Batch
from ..codec import Codec, codec_for
from ..engine import Dead, Delivery, Done, Failure, Outcome, Outgoing, Reason, Release, RetryAfter
from ..errors import DecodeError
from ..events import EventSpec, spec_of
from ..handlers import Handler
from ..logs import Lasting, command
from ..message import EXPIRY, Message, current_message, expiry, follow_up_id, identity
from ..publisher import Publisher
from ..registry import Plan
from ..retry import Reject, RetryLater, RetryPolicy
from ..stepping import within
from ..unit import Deposed, InboxKey, Member, Shared, Unit, Units
from ..version import __version__
from ..versions import AGAIN, Patience
from .calling import (
    CancelledItself,
    ExitedItself,
    TimeUp,
    WrongReturn,
    answering,
    argument,
    call,
    in_transaction,
    late,
    provided,
    time_limit,
)
from .outage import away
from .telling import end_of, error_name, error_text, key_of, line_of, storable
from .tracebacks import in_place, place_of, text_of

log = logging.getLogger("tidings.worker")
log.addFilter(in_place)

RERUNS: Final = 5
"""Runs more that a transaction gets within one delivery when it lost against another one."""
MOST_IN_BATCH: Final = 256
_READERS = 10_000
_HOST = socket.gethostname()


class LeaseLost(Exception):
    """The lease ended while the handler ran: the message may be somebody else's by now; nothing was committed."""


class Handling:
    """One handler, ready to take deliveries."""

    def __init__(
        self,
        handler: Handler,
        plan: Plan,
        publisher: Publisher,
        namespace: str,
        policy: RetryPolicy,
        limit: float,
        patience: float = 600.0,
    ) -> None:
        self.handler = handler
        self.plan = plan
        self.publisher = publisher
        self.namespace = namespace
        self.policy = handler.options.retry or policy
        self.limit = handler.limit or limit
        self.batch = handler.options.batch or MOST_IN_BATCH
        self.clock = publisher.clock
        self.fence: tuple[str, int] | None = None
        """Of an ordered group: name and epoch under which this worker is the active one in the database."""
        self._readers: dict[str, tuple[EventSpec | None, Codec]] = {}
        self._of_others: dict[str, Lasting] = {}
        self._patience = Patience(self.clock, patience)
        self._provided = [parameter for parameter in plan.parameters if parameter.kind == "provided"]
        self._at_hand = [parameter for parameter in plan.parameters if parameter.kind != "provided"]

    def read(self, delivery: Delivery) -> Message[Any] | Outcome:
        """The message for the handler, or what becomes of a delivery that no handler here is to see."""
        entry = delivery.entry
        if entry.subject not in self._readers and not self.handler.listens_to(entry.subject):
            # The group's claims are wider than this version's filters: a newer or older one of us handles it.
            self._tell_of_none(entry.subject)
            return Release(delivery, delay=AGAIN)
        over = None if delivery.replay else expiry(entry.headers)
        if over is not None and over <= self.clock.time():
            return self._dead(delivery, "expired", Expired(entry.headers[EXPIRY]))
        try:
            return self.decode(delivery)
        except DecodeError as error:
            if error.reason == "unknown_type" and (left := self._patience.left(entry, error)) > 0:
                return Release(delivery, delay=left)
            reason: Reason = error.reason  # type: ignore[assignment]
            return self._dead(delivery, reason, error)

    def _tell_of_none(self, subject: str) -> None:
        if subject not in self._of_others:
            if len(self._of_others) >= _READERS:
                self._of_others.clear()
            self._of_others[subject] = Lasting(log, self.clock)
        self._of_others[subject].met(
            "handed back: %s does not listen to %s, which its group %s has claimed. It waits for a worker that does: "
            "of another version, or of another application with a group of this name (tidings groups ls)",
            self.handler.name,
            subject,
            self.handler.options.group,
        )

    async def handle(self, delivery: Delivery, message: Message[Any]) -> tuple[Outcome, list[Outgoing]]:
        """Run the handler; returns what becomes of the delivery and what it staged for sending after its commit. To be
        called in a task or context of its own for each message.

        Raises only `LeaseLost`, `Away` and `CancelledError`; then nothing was committed, unless the commit itself was
        cut off: then the inbox knows at the next delivery.
        """
        # What the handler publishes is caused by the message. The context is the message's own.
        current_message.set(message)
        in_transaction.set(self.plan.transactional)
        try:
            return Done(delivery), await self._run(delivery, message)
        except LeaseLost:
            raise
        except (Exception, SystemExit) as error:
            # An exit let out would end the event loop and leave a process that lives and does nothing.
            return self.judged(delivery, error), []

    def decode(self, delivery: Delivery) -> Message[Any]:
        """The message with its data as the handler's type; raises `DecodeError`."""
        entry = delivery.entry
        id = identity(entry, self.namespace)
        reader = self._readers.get(entry.subject)
        if reader is None:
            if len(self._readers) >= _READERS:
                self._readers.clear()
            reader = self._readers[entry.subject] = self._reader(entry.subject)
        spec, codec = reader
        body = entry.body if spec is None else self.publisher.registry.upcasters.current(entry, spec)
        data, attempt, replay = codec.decode(body), delivery.attempts + 1, delivery.replay or None
        return Message(entry, data, id=id, group=delivery.group, attempt=attempt, replay=replay)

    def _reader(self, subject: str) -> tuple[EventSpec | None, Codec]:
        """What reads a subject, and the class whose versions count: the one the handler takes or is registered with."""
        taken = self._type_for(subject)
        specs = [spec for spec in (spec_of(taken), *self.handler.classes) if spec and spec.subject == subject]
        return next(iter(specs), None), codec_for(taken)

    def _type_for(self, subject: str) -> Any:
        known = self.publisher.registry.types.get(subject)
        wanted = next(
            (p.type for p in self.plan.parameters if p.kind in ("event", "message", "batch") and p.type), None
        )
        if wanted is None:
            return next((spec.type for spec in self.handler.classes if spec.subject == subject), Any)
        if wanted is Any:
            return known.type if known else Any
        if typing.get_origin(wanted) in (typing.Union, types.UnionType):
            specs = [spec for member in typing.get_args(wanted) if (spec := spec_of(member)) is not None]
            found = next((spec.type for spec in specs if spec.subject == subject), None)
            if specs and found is None:
                names = ", ".join(spec.subject for spec in specs)
                raise DecodeError("unknown_type", f"{self.handler.name} takes {names}, not {subject!r}")
            return found or wanted
        return wanted

    async def _run(self, delivery: Delivery, message: Message[Any]) -> list[Outgoing]:
        units = self.plan.units
        if units is None:
            result = await within(self.clock, self.limit, self.run(message, None), self._late)
            if result is not None:
                await self.publisher.send(self.follow_ups(result, message))
            return []
        cut_off: list[Outgoing] = []
        for rerun in range(RERUNS + 1):
            try:
                staged = await self._transact(units, delivery, message, cut_off)
                break
            except Exception as error:
                if rerun == RERUNS or not units.conflict(error):
                    raise
                log.info("the transaction runs again (%d of %d): %s", rerun + 1, RERUNS, line_of(error))
            # In the time of the database, which is nobody's to move.
            await asyncio.sleep(random.uniform(0.0, 0.02 * 2**rerun))  # noqa: S311
        if staged is not None:
            return staged
        log.info("handled before, nothing done")
        turn = await units.committed(cut_off)
        return [*turn.ready, *turn.behind]

    def _late(self) -> TimeUp:
        return late(self.limit)

    async def _transact(
        self, units: Units, delivery: Delivery, message: Message[Any], cut_off: list[Outgoing]
    ) -> list[Outgoing] | None:
        """What was staged and committed; None if the message was handled before. `cut_off` gets what was staged: should
        the commit fail, it may be there all the same."""
        async with units.begin(self.plan.connection, self.handler.options.group) as unit:
            async with time_limit(self.clock, self.limit):
                if not await unit.fresh([inbox_key(message)]):
                    return None
                result = await self.run(message, unit)
            cut_off[:] = staged = self.follow_ups(result, message)
            await self._commit(unit, staged, delivery)
            return staged

    async def _commit(self, unit: Unit, staged: list[Outgoing], delivery: Delivery) -> None:
        """A database that does not answer must not keep the message for as long as its lease is renewed."""
        async with answering(self.clock):
            await unit.stage(staged)
            await self.check_ours(unit, [delivery])
            await unit.commit()

    async def check_ours(self, unit: Unit | Shared, deliveries: Sequence[Delivery]) -> None:
        """Last thing before a commit: raise `LeaseLost` if any of them may be somebody else's by now."""
        if self.fence is not None:
            try:
                await unit.fence(*self.fence)
            except Deposed as error:
                log.warning("%s", error)
                for delivery in deliveries:
                    delivery.deadline = 0.0  # nor is there anything to settle
                raise LeaseLost from error
        if deliveries and self.clock.monotonic() >= min(delivery.deadline for delivery in deliveries):
            raise LeaseLost

    async def run(self, message: Message[Any], unit: Unit | Member | None) -> Any:
        """Call the handler for one message; returns what it returns, or what follows in a batch of one."""
        if not self.plan.batched:
            return await self._call(message, unit)
        batch: Batch[Any] = Batch((message,))
        await self.run_batch(batch, unit)
        if 0 in batch.failures:
            raise batch.failures[0]
        return batch.follow_ups.get(0)

    async def run_batch(self, batch: Batch[Any], unit: Unit | Member | None) -> None:
        """Call a batch handler; what becomes of each is in the batch."""
        result = await self._call(batch, unit)
        if result is not None:
            raise WrongReturn(
                f"{self.handler.name} returned {type(result).__name__}: a batch handler returns nothing; say "
                "batch.follow(i, event), so that it is known from which message it follows"
            )

    async def _call(self, given: Message[Any] | Batch[Any], unit: Unit | Member | None) -> Any:
        arguments = {parameter.name: argument(parameter, given, unit) for parameter in self._at_hand}
        if not self._provided and self.plan.is_async:
            result = await self.handler.function(**arguments)
        else:
            async with AsyncExitStack() as stack:
                for parameter in self._provided:
                    provider = self.publisher.registry.providers[parameter.type]
                    arguments[parameter.name] = await provided(provider, stack)
                result = await call(self.handler.function, arguments, self.plan.is_async, unit)
        failpoints.here("handler.returned")
        return result

    def follow_ups(self, result: Any, message: Message[Any]) -> list[Outgoing]:
        """What a handler has returned, as messages; raises `WrongReturn` for what is no event."""
        if result is None:
            return []
        events = result if isinstance(result, list | tuple) else [result]
        for event in events:
            if spec_of(type(event)) is None:
                raise WrongReturn(
                    f"{self.handler.name} returned {type(event).__name__}: "
                    "a handler returns None, an event or a list of events"
                )
        return [
            self.publisher.compose(event, id=follow_up_id(message, index), cause=message)
            for index, event in enumerate(events)
        ]

    def judged(self, delivery: Delivery, error: BaseException) -> Outcome:
        """What becomes of a delivery whose handling ended with an error; raises `Away`."""
        if isinstance(error, asyncio.CancelledError):
            return self.failed(delivery, CancelledItself(self.handler.name, error))
        if isinstance(error, SystemExit):
            return self.failed(delivery, ExitedItself(self.handler.name, error))
        if not isinstance(error, Exception):
            raise error
        if isinstance(error, Reject):
            return self._dead(delivery, "rejected", error)
        if isinstance(error, RetryLater):
            return self.failed(delivery, error, error.after)
        if (elsewhere := away(error, self.plan.units)) is not None:
            raise elsewhere from error
        return self.failed(delivery, error)

    def failed(self, delivery: Delivery, error: Exception, after: float | None = None) -> Outcome:
        """What becomes of a delivery whose failure counts as an attempt."""
        failed = delivery.attempts + 1
        policy = self.policy.applied_to(error)
        delay = policy.delay(failed)
        failure = self._failure(error)
        if delay is None:
            # How many more there would have been says nothing where no further one is made.
            tried = f"attempt {failed}" if failed > policy.attempts else f"attempt {failed} of {policy.attempts}"
            place = place_of(error, self.handler.function.__module__.partition(".")[0])
            log.error(
                "%s failed, dead letter (%s dlq show %s): %s",
                tried,
                command(),
                key_of(delivery),
                line_of(error),
                exc_info=error,
                extra={"place": place or "  nowhere in the application's own lines"},
            )
            return Dead(delivery, "timeout" if isinstance(error, TimeUp) else "handler_error", failure)
        if after is not None:
            delay = after
        log.warning("attempt %d of %d failed, again in %.1f s: %s", failed, policy.attempts, delay, line_of(error))
        return RetryAfter(delivery, delay, failure)

    def _dead(self, delivery: Delivery, reason: Reason, error: Exception) -> Dead:
        """One on which no handler has failed."""
        log.error("dead letter, %s (%s dlq show %s): %s", reason, command(), key_of(delivery), error_text(error))
        return Dead(delivery, reason, self._failure(error, with_traceback=False))

    def _failure(self, error: Exception, *, with_traceback: bool = True) -> Failure:
        text = text_of(error) if with_traceback else ""
        return Failure(
            error=error_name(error),
            message=error_text(error)[:2000],
            traceback=storable(end_of(text)),
            handler=self.handler.name,
            host=_HOST,
            version=__version__,
        )


def inbox_key(message: Message[Any]) -> InboxKey:
    """What the database remembers of it: a replay is remembered for itself, so that its handler runs again."""
    id = message.id if message.replay is None else f"{message.id}\n{message.replay}"
    return InboxKey(message.group, message.subject, id)


class Expired(Exception):
    """No handler began the message in time."""

    def __init__(self, at: str) -> None:
        super().__init__(
            f"it expired at {at}, and no handler had finished it by then: too few workers, or none for long"
        )
