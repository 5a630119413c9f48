"""One after the other, or all in one: which way of storing many messages is the faster one on this server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

FEW: Final = 16
"""Messages up to which single ones are the faster way on any server."""
_RUN: Final = 8
"""Single messages under way at the same time that are enough for a measurement."""
_MANY: Final = 64
"""The same, while it is not known whether the server fsyncs."""
_SAMPLES: Final = 4
"""Measurements that are remembered. The best one counts: whatever else the machine does only adds to it."""
_ENOUGH: Final = 2
"""Measurements of single messages before a batch is tried on an unknown server."""
_CHEAP: Final = 25e-6
"""Seconds per single message below which no batch is ever tried there: no disk is that fast."""
_EACH: Final = 10e-6
"""Seconds that a message adds to a batch."""
_AGAIN: Final = 64
"""Once in so many times the other way is tried: the disk may have become slower, or faster."""


class Pace:
    """Whether to store many messages as an atomic batch.

    A batch is written to the disk once, but costs some milliseconds by itself: with many messages it is far faster
    where the server fsyncs each of them (`sync_interval: always`), and slower everywhere else. No client is told that
    setting. So it is given (`fsyncs`), or suspected when single messages are dear; and from how many messages on a
    batch pays is learned from what either way takes.
    """

    def __init__(self, fsyncs: bool | None, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._fsyncs = fsyncs
        self.reset()

    def reset(self) -> None:
        """Another server may answer now."""
        self._singles: deque[float] = deque(maxlen=_SAMPLES)
        self._batches: deque[float] = deque(maxlen=_SAMPLES)
        self._skipped = 0
        self._taken = _AGAIN - _SAMPLES
        self._began = 0.0
        self._count = 0
        self._left = 0
        self._in_batch = False

    @property
    def few(self) -> float:
        """Up to so many that wait go one by one."""
        if self._fsyncs is False:
            return float("inf")
        if self._fsyncs is None and (len(self._singles) < _ENOUGH or min(self._singles) < _CHEAP):
            return float("inf")
        if not self._singles or not self._batches:
            return FEW if self._fsyncs else _MANY
        saved = min(self._singles) - _EACH
        return max(FEW, min(self._batches) / saved) if saved > 0 else float("inf")

    @property
    def dear(self) -> bool:
        """Whether a batch is the faster way for many."""
        return self.few < float("inf")

    def batch(self, waiting: int) -> bool:
        """Whether so many messages that wait should leave as one batch."""
        if waiting <= FEW:
            return False
        few = self.few
        if waiting > few:
            self._taken += waiting <= _MANY
            return waiting > _MANY or self._taken % _AGAIN != 0
        self._skipped += bool(self._batches)
        return waiting >= _MANY and bool(self._batches) and self._skipped % _AGAIN == 0

    def sent(self, flying: int, batch: bool) -> None:
        """So many messages are under way now; with `batch` the last that left were one."""
        if not self._left and flying >= (_MANY if self._fsyncs is None else _RUN):
            self._began, self._count, self._left, self._in_batch = self._now(), flying, flying, batch

    def answered(self, count: int) -> None:
        """The next `count` of those under way have their answer: one, or all of a batch."""
        if not self._left:
            return
        self._left -= count
        if self._left > 0:
            return
        self._left = 0
        took = self._now() - self._began
        if self._in_batch:
            self._batches.append(max(0.0, took - self._count * _EACH))
        else:
            self._singles.append(took / self._count)
