"""What became of deliveries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ...clock import Clock
from ...engine import Delivery, Outcome, Release, RetryAfter
from ...errors import Unconfirmed
from .link import Link
from .outcomes import kept, told
from .pull import extend

_AT_ONCE: Final = 500


class Settler:
    def __init__(self, link: Link, clock: Clock, settled: Callable[[Delivery], None]) -> None:
        self._link = link
        self._clock = clock
        self._settled = settled

    async def begin(self, delivery: Delivery) -> None:
        """See `Engine.begin`."""
        await self._link.call("begin", delivery.group, delivery.entry.position, delivery.token, delivery.crashes)

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Engine.settle`. The server ignores what is no longer ours, and so what is repeated."""
        for begin in range(0, len(outcomes), _AT_ONCE):
            some = outcomes[begin : begin + _AT_ONCE]
            await self._link.call("settle", *told(some))
            for outcome in some:
                self._settled(outcome.delivery)

    async def keep(self, outcome: RetryAfter | Release) -> None:
        """See `Engine.keep`."""
        delivery = outcome.delivery
        failure = kept(outcome.failure) if isinstance(outcome, RetryAfter) else b""
        place = delivery.group, delivery.entry.position, delivery.token, delivery.crashes
        delivery.attempts = await self._link.call("keep", *place, repr(outcome.delay), failure, doubt=Unconfirmed)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `Engine.extend`."""
        await extend(self._link, self._clock, deliveries)
