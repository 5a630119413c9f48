"""How many messages share a transaction, and whether they should.

The number grows while all goes well and is halved when a group had to be rolled back. A handler that is slow, or waits
for something besides its database, would keep the transaction, its locks and everybody's acknowledgement waiting: its
messages get a transaction each, and after a while groups are tried again.
"""

from __future__ import annotations

import logging
from typing import Final

from .clock import Clock

log = logging.getLogger("tidings.worker")

MOST: Final = 256
FIRST: Final = 16
SLOW: Final = 0.01
"""Seconds that a handler may take; one in twenty may take longer."""
LONGEST: Final = 0.25
"""Seconds after which a group begins no further message."""
_COUNTED: Final = 60
_TOO_MANY: Final = 3
_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 1800.0


class Pace:
    """What one group of one process has learnt about its handler."""

    def __init__(self, group: str, clock: Clock, *, first: int = FIRST, most: int = MOST) -> None:
        self.size = min(first, most)
        """How many messages the next transaction may have."""
        self.wary = False
        """Whether a failure has lately cost a whole group: what has failed before runs by itself then."""
        self.meets = True
        """Whether flushes may be shared."""
        self._most = most
        self._group = group
        self._clock = clock
        self._calls = 0
        self._slow = 0
        self._until = 0.0
        self._pause = _PAUSE

    @property
    def together(self) -> bool:
        """Whether messages may share a transaction now."""
        return self._clock.monotonic() >= self._until

    def clean(self, count: int) -> None:
        """A group of so many was committed."""
        if count >= self.size:
            self.size = min(self._most, self.size + max(1, self.size // 2))
        self.wary = False

    def spoilt(self, *, wary: bool = False) -> None:
        """A group had to be rolled back, because of a handler that is `wary` to be given another time."""
        self.size = max(min(2, self._most), self.size // 2)
        self.wary = self.wary or wary

    def interleaved(self) -> None:
        """Handlers that met at a flush wanted to read afterwards."""
        self.meets = False
        log.info("group %s: its handler reads after its flush, so each flush is its own from now on", self._group)

    def took(self, seconds: float) -> None:
        """A handler ran for so long in a group, the wait for others not counted."""
        self._calls += 1
        self._slow += seconds > SLOW
        if self._slow > _TOO_MANY:
            self.demote(f"its handler often takes longer than {SLOW * 1000:g} ms")
        elif self._calls >= _COUNTED:
            self._calls = self._slow = 0
            self._pause = _PAUSE

    def demote(self, why: str) -> None:
        """One message per transaction for a while, longer each time."""
        log.info("group %s: one transaction per message for %.0f s: %s", self._group, self._pause, why)
        self._until = self._clock.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._calls = self._slow = 0
        self.size = min(FIRST, self._most)
