"""Outage mode: when what a group needs is away, no message is blamed for it.

What counts as away:

- *for sure*: the engine, and what the unit of work calls transient (`Units.transient`). Such a failure burns no
  attempt, unless another message of the group, which came after the same one had failed like this before, was
  handled: then it is the message's own.
- *perhaps*: a `ConnectionError` out of the handler, or a request that nobody answers (`NoResponder`). These are
  attempts as any failure is; only while the group probes they are not.

After `SEVERAL` such failures in a row of `DIFFERENT` messages the group *probes*: one message at a time, the next one
after a pause that grows to `MOST` seconds, in turns. The first that is handled ends it. Each
worker process decides for itself.
"""

from __future__ import annotations

import itertools
import logging
import random
from typing import Final, NamedTuple

from ..clock import Clock
from ..engine import Delivery
from ..errors import EngineUnavailable, NoResponder, StoreFull, Unconfirmed
from ..logs import of_no_message
from ..unit import Units

log = logging.getLogger("tidings.worker")

SEVERAL: Final = 5
DIFFERENT: Final = 3
FIRST: Final = 0.5
MOST: Final = 5.0
_MOST_TURNS: Final = 12
"""Probes for which a message that has failed is out of the way, at most."""
_REMEMBERED: Final = 10_000
_TOLD_EACH: Final = 32
_ENGINE_AWAY: Final = (EngineUnavailable, StoreFull, Unconfirmed)


class Away(Exception):
    """What a handler needs may be away; `error` says what happened."""

    def __init__(self, error: Exception, *, sure: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.sure = sure


def away(error: Exception, units: Units | None) -> Away | None:
    """The error as one of the environment, or None if it is the message's or the handler's."""
    if isinstance(error, _ENGINE_AWAY) or (units is not None and units.transient(error)):
        return Away(error, sure=True)
    return Away(error, sure=False) if isinstance(error, ConnectionError | NoResponder) else None


class _Failed(NamedTuple):
    times: int
    mark: int


class Outage:
    """What one group in this process knows about the things its handler needs."""

    def __init__(self, group: str, clock: Clock) -> None:
        self.probing = False
        self._group = group
        self._clock = clock
        self._marks = itertools.count(1)
        self._failed: dict[int, _Failed] = {}
        """By position: what failed without being blamed, the longest ago first."""
        self._proof = 0
        """When the latest message came that was handled."""
        self._in_a_row = 0
        self._different: set[int] = set()
        self._pause = FIRST
        self.due = 0.0
        """When the next probe may begin, by the clock's monotonic time."""
        self._entered = (0, 0.0)

    def begun(self) -> int:
        """A message has come; returns the mark that `handled` or `failed` takes. Marks rise."""
        return next(self._marks)

    def handled(self, delivery: Delivery, mark: int) -> None:
        """What the message needed was there."""
        if not self._in_a_row and not self._failed:
            self._proof = max(self._proof, mark)
            return
        if self.probing:
            self._leave()
        self._failed.pop(delivery.entry.position, None)
        self._proof = max(self._proof, mark)
        self._in_a_row = 0
        self._different.clear()

    def failed(self, delivery: Delivery, mark: int, away: Away) -> float | None:
        """Seconds until the message is to come back with no attempt counted; None if it is its own failure."""
        before = self._failed.pop(delivery.entry.position, None)
        shown = before is not None and self._proof > before.mark
        own = not self.probing and (shown or not away.sure)
        times = 1 if before is None or own else before.times + 1
        self._failed[delivery.entry.position] = _Failed(times, next(self._marks))
        if len(self._failed) > _REMEMBERED:
            del self._failed[next(iter(self._failed))]
        self._in_a_row += 1
        if len(self._different) < DIFFERENT:
            self._different.add(delivery.entry.position)
        if self.probing:
            return self._missed(mark, times)
        if self._in_a_row >= SEVERAL and len(self._different) >= DIFFERENT:
            self._enter(away)
        return None if own else random.uniform(0.5, 1) * min(MOST, FIRST * 2.0 ** min(times - 1, 10))  # noqa: S311

    @property
    def is_news(self) -> bool:
        """Whether the latest failure is worth a line: the first is, and a few of what lasts and never becomes an
        outage; none while the group probes."""
        return not self.probing and self._in_a_row % _TOLD_EACH == 1

    async def turn(self) -> None:
        """Return when the next message may be asked for: at once, or when the next probe is due."""
        while self.probing and (rest := self.due - self._clock.monotonic()) > 0:
            await self._clock.sleep(rest)

    def _enter(self, away: Away) -> None:
        self.probing = True
        self._pause = FIRST
        self._entered = (next(self._marks), self._clock.monotonic())
        self._schedule()
        of_no_message(
            log.warning,
            "group %s: what its handler needs is away, %d failures in a row (%s: %s). One message at a time is tried, "
            "every %g s at most, and no attempt is counted, until one is handled",
            self._group,
            self._in_a_row,
            type(away.error).__qualname__,
            str(away)[:300],
            MOST,
        )

    def _leave(self) -> None:
        self.probing = False
        of_no_message(
            log.warning,
            "group %s: one is handled again after %.0f s, all go on; %d tries with %d messages had failed",
            self._group,
            self._clock.monotonic() - self._entered[1],
            self._in_a_row,
            len(self._failed),
        )

    def _missed(self, mark: int, times: int) -> float:
        """A probe, or something that had begun before, failed as well. The more often, the later it comes back: some
        that fail for reasons of their own must not take every turn."""
        if mark > self._entered[0]:
            self._pause = min(2 * self._pause, MOST)
            self._schedule()
        return self._pause * min(times, _MOST_TURNS)

    def _schedule(self) -> None:
        self.due = self._clock.monotonic() + random.uniform(0.5, 1) * self._pause  # noqa: S311
