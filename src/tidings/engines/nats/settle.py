"""Say what became of deliveries: writes first, conditioned on what was delivered, then the acknowledgements."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from ...clock import Clock
from ...engine import Dead, Delivery, Done, Outcome, Park, Release, RetryAfter
from ...errors import Conflict, EngineUnavailable, TidingsError
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect, read_ack
from .connection import Frame
from .layout import Layout
from .leases import is_ours, renew
from .link import Disconnected
from .pull import nak
from .purge import hold
from .wire import UNNOTED, Attempts, copied, death_of, parking_of, refers, shortened

TOMBSTONE = {"Nats-Rollup": "sub", "Nats-TTL": "1s"}
"""Replaces what stood under a subject by nothing, and goes away itself."""


class Settler:
    def __init__(self, js: JetStream, layout: Layout, clock: Clock, settled: Callable[[Delivery], None]) -> None:
        self._js = js
        self._link = js.link
        self._layout = layout
        self._clock = clock
        self._settled = settled

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Engine.settle`. Nothing is left in a buffer: on return the server has read every acknowledgement."""
        valid = self._valid(outcomes)
        if not valid:
            return
        loop = asyncio.get_running_loop()
        # No try begins after the leases: it would settle what is somebody else's by then.
        leases = max(outcome.delivery.deadline for outcome in valid) - self._clock.monotonic()
        until, why = loop.time() + min(self._js.timeout, leases), "no answer in time"
        while (left := until - loop.time()) > 0:
            try:
                await self._link.ready(left)
                async with asyncio.timeout(self._js.timeout / 2):
                    await self._once(self._valid(outcomes))
                return
            except Disconnected as error:
                why = str(error)
            except TimeoutError:
                why = "no answer in time"
            await asyncio.sleep(0.02)
        raise EngineUnavailable(
            f"{len(outcomes)} deliveries could not be settled: {why}. They come back after their lease"
        )

    async def begin(self, delivery: Delivery) -> None:
        """See `Engine.begin`."""
        if not self._ours(delivery):
            raise Conflict(f"the lease of message {delivery.entry.position} of group {delivery.group} has ended")
        delivery.token.begun = True  # whatever the answer: it may be stored
        record = Attempts(delivery.attempts, 0.0, crashes=delivery.crashes + 1, returned=delivery.returned)
        await self._register(delivery, msgspec.json.encode(record))

    async def keep(self, outcome: RetryAfter | Release) -> None:
        """See `Engine.keep`."""
        delivery = outcome.delivery
        if not self._ours(delivery):
            raise Conflict(f"the lease of message {delivery.entry.position} of group {delivery.group} has ended")
        if isinstance(outcome, RetryAfter) or delivery.token.begun:
            await self._register(delivery, self._tried(outcome, delivery.returned))
            delivery.token.begun = False
        delivery.attempts += isinstance(outcome, RetryAfter)

    async def _register(self, delivery: Delivery, record: bytes) -> None:
        """Write what was tried; raises `Conflict` when the message was moved on meanwhile."""
        subject = self._layout.attempts(delivery.group, delivery.entry.position)
        try:
            await self._js.store(subject, record, self._condition(delivery))
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            # Unacknowledged it would come, and fail, with each lease.
            self._settled(delivery)
            with contextlib.suppress(EngineUnavailable):
                await self._acknowledge([Done(delivery)], set())
            delivery.token.settled = True
            raise Conflict(f"message {delivery.entry.position} of group {delivery.group} was moved on") from error

    async def extend(self, deliveries: Sequence[Delivery], lease: Callable[[str], float]) -> None:
        """See `Engine.extend`."""
        if any(map(self._ours, deliveries)):
            await self._link.outlast(partial(renew, self._link, self._clock, deliveries, lease), self._js.timeout)

    def _valid(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The first word on each delivery that is still ours."""
        now = self._clock.monotonic()
        first: dict[str, Outcome] = {}
        for outcome in outcomes:
            delivery = outcome.delivery
            # After the deadline it may be somebody else's, and an acknowledgement of ours would count for theirs.
            if is_ours(delivery, now):
                first.setdefault(delivery.token.reply, outcome)
        return list(first.values())

    def _ours(self, delivery: Delivery) -> bool:
        return is_ours(delivery, self._clock.monotonic())

    async def _once(self, outcomes: list[Outcome]) -> None:
        """Everything that can be settled now; then raises why the rest was refused, if any was."""
        gone, failed = await self._write_all(outcomes)
        now = self._clock.monotonic()  # the leases of some may have ended while others were written
        rest = [each for each in outcomes if id(each) not in failed and now < each.delivery.deadline]
        for outcome in rest:
            self._settled(outcome.delivery)  # before it may come back: then it is a new delivery, not this one
        await self._acknowledge(rest, gone)
        await self._link.flush()
        for outcome in rest:
            outcome.delivery.token.settled = True
        if failed:
            raise next(iter(failed.values()))

    async def _write_all(self, outcomes: list[Outcome]) -> tuple[set[int], dict[int, TidingsError]]:
        """Store what has to be before the delivery is given up. Returns, by `id`, those that somebody else has moved on
        (redrive, or another holder), and those that the server refused."""
        gone: set[int] = set()
        failed: dict[int, TidingsError] = {}
        answers: list[tuple[Outcome, asyncio.Future[Frame]]] = []
        for outcome in outcomes:
            if isinstance(outcome, Done) or (isinstance(outcome, Release) and not _is_noted(outcome.delivery)):
                continue
            try:
                answers.append((outcome, await self._write(outcome)))
            except Disconnected:
                raise
            except TidingsError as error:
                failed[id(outcome)] = error
        for outcome, answer in answers:
            try:
                if read_ack(await answer) is None:
                    raise TimeoutError
            except ApiError as error:
                if error.code != WRONG_SEQUENCE:
                    failed[id(outcome)] = error
                elif await self._js.clear(self._inbox(outcome.delivery)):
                    raise TimeoutError from error  # nobody moved it: again
                else:
                    gone.add(id(outcome))
            except Disconnected:
                raise
            except TidingsError as error:
                failed[id(outcome)] = error
        return gone, failed

    def _condition(self, delivery: Delivery) -> dict[str, str]:
        """Replace what stands on the subject, unless the message has been moved on since it was delivered."""
        return {"Nats-Rollup": "sub"} | expect(delivery.token.inbox, self._inbox(delivery))

    def _inbox(self, delivery: Delivery) -> str:
        return self._layout.inbox(delivery.group, delivery.entry.position)

    def _tried(self, outcome: RetryAfter | Release, returned: int) -> bytes:
        """What the attempt register is to say."""
        delivery = outcome.delivery
        record = Attempts(delivery.attempts, 0.0, crashes=delivery.crashes, returned=returned)
        if isinstance(outcome, RetryAfter):
            until, failure = self._clock.time() + outcome.delay, shortened(outcome.failure)
            record = Attempts(delivery.attempts + 1, until, failure, delivery.crashes, returned)
        return msgspec.json.encode(record)

    async def _write(self, outcome: RetryAfter | Dead | Release | Park) -> asyncio.Future[Frame]:
        delivery, condition = outcome.delivery, self._condition(outcome.delivery)
        if isinstance(outcome, RetryAfter | Release):
            subject = self._layout.attempts(delivery.group, delivery.entry.position)
            returned = delivery.returned + isinstance(outcome, Release)
            return await self._link.ask(subject, self._tried(outcome, returned), condition)
        if isinstance(outcome, Park):
            subject = self._layout.parked(delivery.group, delivery.entry.position)
            origin = parking_of(delivery, outcome.behind)
        else:
            subject = self._layout.dead(delivery.group, delivery.entry.position)
            origin = death_of(delivery, outcome.reason, outcome.attempts, outcome.failure, self._clock.time())
        body, headers = copied(delivery.entry, origin, self._link.max_payload, delivery.token.first)
        if refers(headers):
            await hold(self._js, self._layout, delivery.group, delivery.entry.position)
        return await self._link.ask(subject, body, headers | condition)

    async def _acknowledge(self, outcomes: list[Outcome], gone: set[int]) -> None:
        """Those that are finished all in one write, and what the register has on them is taken back."""
        finished: list[str] = []
        tombs: list[str] = []
        for outcome in outcomes:
            delivery = outcome.delivery
            # What was moved on goes without a trace: handed back it would come, and fail, once more.
            if isinstance(outcome, Release | RetryAfter) and id(outcome) not in gone:
                await self._link.publish(delivery.token.reply, nak(outcome.delay))
                continue
            finished.append(delivery.token.reply)
            tried = delivery.attempts or delivery.crashes or delivery.returned or delivery.token.begun
            if tried and isinstance(outcome, Done | Dead):
                tombs.append(self._layout.attempts(delivery.group, delivery.entry.position))
        self._link.send_each(finished, b"+ACK")
        for subject in tombs:
            await self._link.publish(subject, b"", TOMBSTONE)


def _is_noted(delivery: Delivery) -> bool:
    """Whether handing it back is written down: it begun alone, or would look as if it had killed its readers."""
    return delivery.token.begun or delivery.unexplained >= UNNOTED
