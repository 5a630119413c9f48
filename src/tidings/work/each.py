"""One message at a time: the handler runs on each by itself, up to the group's concurrency at once.

A message that may have killed a process runs alone (`suspects`), and failures of what the handler needs are told from
its own (`outage`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Final

from ..engine import Delivery, Done, Outcome, Release
from ..errors import Conflict, EngineError
from ..logs import command, name_message, of_no_message
from ..message import Message, identity
from ..outbox import Relay
from .calling import is_stopping, loop_ends
from .handling import Handling, LeaseLost
from .hands import Receiver
from .outage import Away, Outage
from .suspects import CRASHES, Floor, crash_loop, is_suspect
from .telling import key_of, line_of

log = logging.getLogger("tidings.worker")

_QUIET: Final = 60.0
"""Seconds before messages that run alone are told of again."""


class Each:
    """Runs one group's handler on what was pulled, and puts the outcomes into the worker's hands."""

    def __init__(self, handling: Handling, hands: Receiver, relay: Relay | None, floor: Floor, outage: Outage) -> None:
        self.handling = handling
        self.group = handling.handler.options.group
        self.concurrency = handling.handler.options.concurrency or (1 if handling.plan.transactional else 16)
        self.running: dict[asyncio.Task[None], Collection[Delivery]] = {}
        self.stopping = False
        self.ahead = 0
        """How many of the room are more than can begin now: they are only for what waits already."""
        self._hands = hands
        self._relay = relay
        self._floor = floor
        self._outage = outage
        self._one_ended = asyncio.Event()
        self._quiet_until = 0.0

    def room(self, most: int | None = None) -> int:
        """How many more may begin, with at most so many running."""
        return (self.concurrency if most is None else most) - len(self.running)

    async def one_ended(self) -> None:
        """Wait until one that runs now has ended."""
        self._one_ended.clear()
        await self._one_ended.wait()

    def drained(self) -> None:
        """There was nothing of what was to be taken `ahead`."""

    def stop(self) -> None:
        """Begin nothing more; a cancel means from now on that the worker stops."""
        self.stopping = True

    def is_told_to_stop(self) -> bool:
        """Whether a `CancelledError` in the running task is the worker's, or the end of the event loop, and nothing
        that a handler has done to itself."""
        return is_stopping() and (self.stopping or loop_ends())

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        """Take them in hand and run the handler on each, in a task of its own; returns at once."""
        for delivery in deliveries:
            self._hands.take(delivery)
            handle = self._handle(delivery, self._outage.begun())
            task = asyncio.create_task(handle, name=f"tidings-handle-{self.group}")
            self.running[task] = (delivery,)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.pop(task, None)
        self._one_ended.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the worker itself failed on a message; its lease brings it back", exc_info=error)

    async def _handle(self, delivery: Delivery, mark: int) -> None:
        """In a context of its own."""
        name_message(partial(self._named, delivery))
        try:
            message = self.handling.read(delivery)
            if not isinstance(message, Message):
                self._hands.put(message)
            elif is_suspect(delivery):
                await self._handle_alone(delivery, message, mark)
            else:
                await self._floor.enter()
                try:
                    outcome = await self._outcome(delivery, message, mark)
                finally:
                    self._floor.leave()
                self._hands.put(outcome)
        except asyncio.CancelledError:
            # At once when the worker stops, and never in a hot loop.
            self._hands.put(Release(delivery, delay=0.0 if self.stopping else 1.0))
            raise
        except LeaseLost:
            log.warning("the lease ended before the handler did: nothing committed, somebody else has it")
            self._hands.drop(delivery)
        except BaseException:
            self._hands.drop(delivery)
            raise

    def _named(self, delivery: Delivery) -> dict[str, Any]:
        """What log lines say of it."""
        return {
            "message_id": identity(delivery.entry, self.handling.namespace),
            "subject": delivery.entry.subject,
            "group": self.group,
            "attempt": delivery.attempts + 1,
        }

    async def _outcome(self, delivery: Delivery, message: Message[Any], mark: int) -> Outcome:
        try:
            outcome, staged = await self.handling.handle(delivery, message)
        except Away as trouble:
            return self._after(trouble, delivery, mark)
        except asyncio.CancelledError as error:
            if self.is_told_to_stop():
                raise
            return self.handling.judged(delivery, error)
        if isinstance(outcome, Done):
            self._outage.handled(delivery, mark)
        if staged and self._relay is not None:
            self._relay.send_soon(staged)
        return outcome

    def _after(self, trouble: Away, delivery: Delivery, mark: int) -> Outcome:
        delay = self._outage.failed(delivery, mark, trouble)
        if delay is None:
            return self.handling.failed(delivery, trouble.error)
        log.log(
            logging.WARNING if self._outage.is_news else logging.DEBUG,
            "handing the message back for %.1f s, no attempt is counted: %s",
            delay,
            line_of(trouble.error),
        )
        return Release(delivery, delay)

    def _tell_alone(self, delivery: Delivery) -> None:
        """Each time of one that has crashed its process, and of others, which an outage leaves by the hundred, now and
        then."""
        now = self._hands.clock.monotonic()
        if delivery.crashes:
            log.warning(
                "its process died %d time(s) while it ran alone (after %d it is a dead letter): it runs alone again",
                delivery.crashes,
                CRASHES,
            )
        elif now >= self._quiet_until:
            self._quiet_until = now + _QUIET
            of_no_message(
                log.info,
                "group %s: messages were handed out %d times and more and came to no end, as their workers died or the "
                "broker was away: each of them runs alone in its process, which takes longer",
                self.group,
                delivery.deliveries - 1,
            )

    async def _handle_alone(self, delivery: Delivery, message: Message[Any], mark: int) -> None:
        """As any message, while nothing else runs: until its outcome is settled, so that the crash of what runs next
        is not counted for this one."""
        dead = crash_loop(delivery, self.handling.handler.name)
        if dead is not None:
            log.error("dead letter, crash_loop (%s dlq show %s): %s", command(), key_of(delivery), dead.failure.message)
            self._hands.put(dead)
            return
        async with self._floor.alone():
            self._tell_alone(delivery)
            try:
                await self._hands.engine.begin(delivery)
            except Conflict as error:
                raise LeaseLost from error
            except EngineError as error:
                outcome: Outcome = self._after(Away(error, sure=True), delivery, mark)
            else:
                outcome = await self._outcome(delivery, message, mark)
            self._hands.put(outcome)
            # A cancel ends the wait; the outcome stands, and the task is at its end.
            with contextlib.suppress(asyncio.CancelledError):
                await self._hands.gone(delivery)
