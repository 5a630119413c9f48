"""How many messages share a transaction, and whether they should.

The number grows while all goes well and is halved when a group had to be rolled back. A handler that is slow, or waits
for something besides its database, would keep the transaction, its locks and everybody's acknowledgement waiting: its
messages get a transaction each, and after a while groups are tried again.
"""

from __future__ import annotations

import logging
from typing import Final

from ..clock import Clock

log = logging.getLogger("tidings.worker")

MOST: Final = 256
FIRST: Final = 16
FEWEST: Final = 8
SLOW: Final = 0.01
"""Seconds that a handler may take; one in twenty may take longer."""
LONGEST: Final = 0.25
"""Seconds after which a group begins no further message."""
CAREFUL: Final = 50
"""Groups for which the worker is on its guard after the database has refused something."""
_COUNTED: Final = 60
_TOO_MANY: Final = 3
_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 1800.0


class Pace:
    """What one group of one process has learnt about its handler."""

    def __init__(self, group: str, clock: Clock, *, first: int = FIRST, most: int = MOST) -> None:
        self.size = min(first, most)
        """How many messages the next transaction may have."""
        self.wary = True
        """Whether what has failed before runs by itself: until one of those has shown that they succeed now."""
        self.meets = True
        """Whether flushes may be shared."""
        self._careful = 0
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

    @property
    def careful(self) -> bool:
        """Whether it is worth a savepoint to find out whose rows the database refuses."""
        return self._careful > 0

    def beware(self) -> None:
        """The database has refused something."""
        self._careful = CAREFUL

    def clean(self, count: int) -> None:
        """A group of so many was committed."""
        self._careful = max(0, self._careful - 1)
        if count >= self.size:
            self.size = min(self._most, self.size + max(1, self.size // 2))

    def spoilt(self) -> None:
        """A group had to be rolled back. Said once for what was pulled together, however many of its parts fail."""
        self.size = max(min(FEWEST, self._most), self.size // 2)
        self.wary = True

    def tried_again(self, well: bool) -> None:
        """One that had failed before ran by itself."""
        self.wary = not well

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
