"""One after the other, or all in one: which way of storing many messages is the faster one on this server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

FEW: Final = 16
"""Messages up to which single ones are the faster way on any server."""
_MANY: Final = 64
"""Messages under way at the same time that are enough for a measurement."""
_SAMPLES: Final = 2
"""Measurements of each way; the better one counts, since whatever else the machine does only adds to it."""
_CHEAP: Final = 25e-6
"""Seconds per single message below which no batch is ever tried: no disk is that fast."""
_WORTH: Final = 0.8
"""Part of what single messages cost that an atomic batch may cost to be preferred."""


class Pace:
    """Whether to store many messages as an atomic batch.

    A batch is written to the disk once, but costs some milliseconds by itself: it is far faster where the server
    fsyncs each message (`sync_interval: always`), and slower everywhere else. No client is told that setting. So it is
    given (`fsyncs`), or found out from what a load of messages takes one by one, and then in a few batches.
    """

    def __init__(self, fsyncs: bool | None, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._given = fsyncs
        self.reset()

    def reset(self) -> None:
        """Another server may answer now."""
        self._batches = self._given
        self._singles: list[float] = []
        self._trials: list[float] = []
        self._began = 0.0
        self._count = 0
        self._left = 0

    @property
    def batches(self) -> bool:
        """Whether a batch is worth waiting for."""
        return bool(self._batches)

    def batch(self, waiting: int) -> bool:
        """Whether so many messages that wait should leave as one batch."""
        if waiting <= FEW:
            return False
        if self._batches is None:
            return self._trying and waiting >= _MANY
        return self._batches

    @property
    def _trying(self) -> bool:
        return len(self._singles) == _SAMPLES and min(self._singles) > _CHEAP

    def sent(self, flying: int) -> None:
        """So many messages are under way now."""
        if self._batches is None and not self._left and flying >= _MANY:
            self._began, self._count, self._left = self._now(), flying, flying

    def answered(self, count: int) -> None:
        """The next `count` of those under way have their answer: one, or all of a batch."""
        if not self._left:
            return
        self._left -= count
        if self._left > 0:
            return
        self._left = 0
        cost = (self._now() - self._began) / self._count
        if not self._trying:
            self._singles = [*self._singles, cost][-_SAMPLES:]
        else:
            self._trials.append(cost)
            if len(self._trials) == _SAMPLES:
                self._batches = min(self._trials) < _WORTH * min(self._singles)
