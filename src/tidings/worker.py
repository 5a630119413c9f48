"""The process side of groups: pull, hand to the handler, settle, keep leases, drain.

    pull ──> handling.outcome ──> settle
              (a task each)        (in batches)

A message that is in hand has its lease renewed every third of it until its outcome is settled. One that may have killed
a process runs alone (`suspects`), and a group whose database is away probes (`outage`). Stopping: no new pull,
what waits in buffers goes back at once, running handlers get the grace time, what still runs then is cancelled and
handed back without burning an attempt. A handler that ignores even that is left behind: its lease ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from typing import Any

from .clock import Clock
from .engine import Delivery, Done, Engine, Outcome, Release
from .errors import Closed, Conflict, EngineError, TidingsError
from .handling import Handling, LeaseLost, line_of
from .logs import message_context
from .message import Message, identity
from .outage import Away, Outage
from .outbox import Relay
from .rate import Rate, per_second
from .suspects import Floor, crash_loop, is_suspect

log = logging.getLogger("tidings.worker")

_PULL_WAIT = 30.0
_MOST_PAUSE = 5.0
_CANCEL_WAIT = 5.0


class Worker:
    """Runs some groups until it is told to stop."""

    def __init__(
        self,
        engine: Engine,
        handlings: Sequence[Handling],
        relays: Sequence[Relay],
        *,
        clock: Clock,
        lease: float,
        grace: float,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.lease = lease
        self.grace = grace
        self._relays = {id(relay): relay for relay in relays}
        self._hands = Hands(engine, clock)
        floor = Floor()
        self._groups = [
            GroupRunner(engine, handling, self._hands, self._relay_of(handling, relays), floor)
            for handling in handlings
        ]
        self._leases: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None

    @staticmethod
    def _relay_of(handling: Handling, relays: Sequence[Relay]) -> Relay | None:
        return next((relay for relay in relays if relay.units is handling.plan.units), None)

    @property
    def busy(self) -> bool:
        """Whether a handler runs, an outcome waits to be settled or a follow-up to be sent."""
        return bool(self._hands.held) or any(relay.busy for relay in self._relays.values())

    def start(self) -> None:
        """Begin; returns at once. Everything runs in tasks of this event loop until `stop`."""
        self._leases = asyncio.create_task(self._hands.keep_leases(self.lease), name="tidings-leases")
        self._settling = asyncio.create_task(self._hands.settle_all(), name="tidings-settle")
        for group in self._groups:
            group.start()

    async def stop(self) -> None:
        """Drain: see the module's text. Returns when everything is settled or handed back; idempotent."""
        await asyncio.gather(*(group.stop_pulling() for group in self._groups))
        try:
            await self._end_running()
            # Leases that are renewed no more bound the wait for an engine that cannot settle.
            await ended(self._leases)
            await self._settled()
        finally:
            await ended(self._leases)
            await ended(self._settling)

    async def _settled(self) -> None:
        """Wait for the last outcomes, unless what settles them has ended (the loop is being torn down)."""
        waiter = asyncio.create_task(self._hands.settled())
        try:
            await asyncio.wait(
                {waiter, self._settling} if self._settling else {waiter}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiter.cancel()

    async def _end_running(self) -> None:
        running = {task: delivery for group in self._groups for task, delivery in group.running.items()}
        if not running:
            return
        log.info("stopping: %d message(s) in hand, waiting up to %.0f s", len(running), self.grace)
        try:
            late = await self._ended_within(self.grace, running)
        except asyncio.CancelledError:
            for task in running:
                task.cancel()
            raise
        for task in late:
            task.cancel()
        for task in await self._ended_within(_CANCEL_WAIT, late):
            log.error("%s ignores that it is cancelled; its lease brings the message back", task.get_name())
            self._hands.drop(running[task])

    async def _ended_within(
        self, seconds: float, tasks: Collection[asyncio.Task[None]]
    ) -> Collection[asyncio.Task[None]]:
        """Wait for the tasks; returns those that still run after the time."""
        over = asyncio.Event()
        timer = self.clock.call_later(seconds, over.set)
        waiter = asyncio.create_task(over.wait())
        try:
            while tasks and not over.is_set():
                await asyncio.wait({*tasks, waiter}, return_when=asyncio.FIRST_COMPLETED)
                tasks = [task for task in tasks if not task.done()]
        finally:
            timer.cancel()
            waiter.cancel()
        return tasks


async def ended(task: asyncio.Task[None] | None) -> None:
    """Cancel a task of ours and wait for its end."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Hands:
    """The deliveries in this worker's hands: their leases, and the outcomes on their way to the engine."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.held: dict[int, Delivery] = {}
        self._outcomes: list[Outcome] = []
        self._waiting: dict[int, asyncio.Event] = {}
        self._something = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def take(self, delivery: Delivery) -> None:
        self.held[id(delivery)] = delivery
        self._empty.clear()

    def drop(self, delivery: Delivery) -> None:
        """Give up a delivery without an outcome: its lease brings it back."""
        self.held.pop(id(delivery), None)
        if (waiting := self._waiting.pop(id(delivery), None)) is not None:
            waiting.set()
        if not self.held:
            self._empty.set()

    def put(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._something.set()

    async def gone(self, delivery: Delivery) -> None:
        """Wait until the delivery is settled or given up."""
        if id(delivery) in self.held:
            await self._waiting.setdefault(id(delivery), asyncio.Event()).wait()

    async def settled(self) -> None:
        """Wait until nothing is in hand; leases bound the wait when the engine is away."""
        await self._empty.wait()

    async def keep_leases(self, lease: float) -> None:
        """Renew every third of the lease, so that two renewals may fail before it ends."""
        while True:
            await self.clock.sleep(lease / 3)
            if not self.held:
                continue
            try:
                await self.engine.extend(list(self.held.values()))
            except EngineError as error:
                log.warning("leases could not be renewed: %s", error)
            except Exception:
                log.critical("leases could not be renewed, by an error of ours; the next renewal tries", exc_info=True)

    async def settle_all(self) -> None:
        """Settle what handlers decided, everything that has gathered in one call."""
        while True:
            await self._something.wait()
            self._something.clear()
            batch, self._outcomes = self._outcomes, []
            try:
                await self._settle(batch)
            except Exception:
                log.critical("the worker itself failed to settle; the leases bring the messages back", exc_info=True)
            finally:
                for outcome in batch:
                    self.drop(outcome.delivery)

    async def _settle(self, batch: list[Outcome]) -> None:
        pause = 0.1
        while True:
            now = self.clock.monotonic()
            # Past its deadline a delivery may be somebody else's: an ack now could end the other's work.
            batch = [outcome for outcome in batch if now < outcome.delivery.deadline]
            if not batch:
                return
            try:
                await self.engine.settle(batch)
                return
            except Closed:
                return
            except EngineError as error:
                log.warning("outcomes could not be settled yet: %s", error)
                await self.clock.sleep(pause)
                pause = min(2 * pause, 1.0)


class GroupRunner:
    """Pulls for one group and runs its handler, up to its concurrency at once."""

    def __init__(self, engine: Engine, handling: Handling, hands: Hands, relay: Relay | None, floor: Floor) -> None:
        self.engine = engine
        self.handling = handling
        self.group = handling.handler.options.group
        self.concurrency = handling.handler.options.concurrency or (1 if handling.plan.transactional else 16)
        self.running: dict[asyncio.Task[None], Delivery] = {}
        self._hands = hands
        self._relay = relay
        self._floor = floor
        self._outage = Outage(self.group, hands.clock)
        rate = handling.handler.options.rate
        self._rate = None if rate is None else Rate(hands.clock, per_second(rate))
        self._one_ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._pull_all(), name=f"tidings-pull-{self.group}")

    async def stop_pulling(self) -> None:
        """No more pulls; what the engine has buffered for us goes back at once."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        with contextlib.suppress(EngineError):
            await self.engine.stop_pulling(self.group)

    async def _room(self) -> int:
        """Wait until more may be begun; returns how many."""
        while True:
            await self._outage.turn()
            ready = self.concurrency if self._rate is None else await self._rate.turn()
            await self._floor.opened()
            room = min(ready, (1 if self._outage.probing else self.concurrency) - len(self.running))
            if room > 0:
                return room
            self._one_ended.clear()
            await self._one_ended.wait()

    async def _pull_all(self) -> None:
        pause = 0.1
        deliveries: list[Delivery] | None
        while True:
            room = await self._room()
            try:
                deliveries = await self.engine.pull(self.group, room, _PULL_WAIT)
            except Closed:
                return
            except TidingsError as error:
                cause = "was it removed?" if isinstance(error, Conflict) else "waiting for the engine"
                log.warning("group %s cannot pull (%s): %s", self.group, cause, error)
                deliveries = None
            except Exception:
                log.critical("group %s cannot pull, by an error of ours; it goes on trying", self.group, exc_info=True)
                deliveries = None
            if deliveries is None:
                await self._hands.clock.sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE)
                continue
            pause = 0.1
            if self._rate is not None:
                self._rate.take(len(deliveries))
            # What has crashed before goes last: it waits for the others, not they for it.
            for delivery in sorted(deliveries, key=lambda delivery: delivery.crashes):
                self._begin(delivery)

    def _begin(self, delivery: Delivery) -> None:
        self._hands.take(delivery)
        task = asyncio.create_task(self._handle(delivery, self._outage.begun()), name=f"tidings-handle-{self.group}")
        self.running[task] = delivery
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.pop(task, None)
        self._one_ended.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the worker itself failed on a message; its lease brings it back", exc_info=error)

    async def _handle(self, delivery: Delivery, mark: int) -> None:
        with message_context(
            message_id=identity(delivery.entry, self.handling.namespace),
            subject=delivery.entry.subject,
            group=self.group,
            attempt=delivery.attempts + 1,
        ):
            try:
                message = self.handling.read(delivery)
                if not isinstance(message, Message):
                    self._hands.put(message)
                elif is_suspect(delivery):
                    await self._handle_alone(delivery, message, mark)
                else:
                    async with self._floor.shared():
                        outcome = await self._outcome(delivery, message, mark)
                    self._hands.put(outcome)
            except asyncio.CancelledError:
                # At once when the worker stops; a handler that cancels its own task must not come back in a hot loop.
                self._hands.put(Release(delivery, delay=0.0 if self._task is None else 1.0))
                raise
            except LeaseLost:
                log.warning("the lease ended before the handler did: nothing committed, somebody else has it")
                self._hands.drop(delivery)
            except BaseException:
                self._hands.drop(delivery)
                raise

    async def _outcome(self, delivery: Delivery, message: Message[Any], mark: int) -> Outcome:
        try:
            outcome, staged = await self.handling.handle(delivery, message)
        except Away as trouble:
            return self._after(trouble, delivery, mark)
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
            logging.INFO if self._outage.probing else logging.WARNING,
            "handing the message back for %.1f s, no attempt is counted: %s",
            delay,
            line_of(trouble.error),
        )
        return Release(delivery, delay)

    async def _handle_alone(self, delivery: Delivery, message: Message[Any], mark: int) -> None:
        """As any message, while nothing else runs: until its outcome is settled, so that the crash of what runs next
        is not counted for this one."""
        dead = crash_loop(delivery, self.handling.handler.name)
        if dead is not None:
            log.error("dead letter: %s", dead.failure.message)
            self._hands.put(dead)
            return
        async with self._floor.alone():
            log.info(
                "handed out %d times, %d attempts failed, %d crashes while it ran alone: it runs alone",
                delivery.deliveries,
                delivery.attempts,
                delivery.crashes,
            )
            try:
                await self.engine.begin(delivery)
            except EngineError as error:
                outcome: Outcome = self._after(Away(error, sure=True), delivery, mark)
            else:
                outcome = await self._outcome(delivery, message, mark)
            self._hands.put(outcome)
            await self._hands.gone(delivery)
