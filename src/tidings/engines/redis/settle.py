"""What became of deliveries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ...clock import Clock
from ...engine import Dead, Delivery, Done, Failure, Outcome, Park, Release, RetryAfter
from ...errors import Unconfirmed
from .link import Link
from .pull import extend, release

_AT_ONCE: Final = 500
_TRACEBACK: Final = 14 * 1024
"""Characters of a traceback that are kept: its end, which says most."""


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
            await self._link.call("settle", *(part for outcome in some for part in _said(outcome)))
            for outcome in some:
                self._settled(outcome.delivery)

    async def keep(self, outcome: RetryAfter | Release) -> None:
        """See `Engine.keep`."""
        delivery = outcome.delivery
        failure = _kept(outcome.failure) if isinstance(outcome, RetryAfter) else b""
        place = delivery.group, delivery.entry.position, delivery.token, delivery.crashes
        delivery.attempts = await self._link.call("keep", *place, repr(outcome.delay), failure, doubt=Unconfirmed)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `Engine.extend`."""
        await extend(self._link, self._clock, deliveries)


def _said(outcome: Outcome) -> tuple[Any, ...]:
    delivery = outcome.delivery
    place = delivery.group, delivery.entry.position, delivery.token, delivery.crashes
    match outcome:
        case Done():
            return ("done", *place, "0", "", "", 0)
        case Release(delay=delay):
            return release(delivery, delay)
        case Park(behind=behind):
            return ("park", *place, behind, "", "", 0)
        case RetryAfter(delay=delay, failure=failure):
            return ("retry", *place, repr(delay), _kept(failure), "", 0)
        case Dead(reason=reason, failure=failure):
            return ("dead", *place, "0", _kept(failure), reason, outcome.attempts)


def _kept(failure: Failure) -> bytes:
    if len(failure.traceback) > _TRACEBACK:
        failure = msgspec.structs.replace(failure, traceback=f"…\n{failure.traceback[-_TRACEBACK:]}")
    return msgspec.json.encode(failure)
