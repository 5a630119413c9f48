"""How many messages a group may begin per second in one process."""

from __future__ import annotations

import math
import re
from typing import Final

from .clock import Clock
from .errors import ConfigError

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def per_second(rate: str | float) -> float:
    """Messages per second of `100/s`, `30/m`, `5/h` or a number of them per second. Raises `ConfigError`."""
    if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf:
        return float(rate)
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)/([smh])", str(rate).strip(), re.ASCII)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"rate={rate!r}: write '100/s', '30/m', '5/h' or a number per second, more than 0")
    return float(match[1]) / _UNITS[match[2]]


class Rate:
    """A token bucket: a message that begins takes a token, and tokens come evenly.

    It starts with one token and holds one second's worth at most (one, where that is less): a worker that was idle, or
    has just started, does not make up for it with a burst.
    """

    def __init__(self, clock: Clock, per_second: float) -> None:
        self._clock = clock
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._tokens = 1.0
        self._counted = clock.monotonic()

    async def turn(self) -> int:
        """Wait until a message may begin; returns how many may."""
        while self._count() < 1.0:
            await self._clock.sleep((1.0 - self._tokens) / self._per_second)
        return int(self._tokens)

    def take(self, messages: int) -> None:
        """So many begin."""
        self._count()
        self._tokens -= messages

    def _count(self) -> float:
        now = self._clock.monotonic()
        # Rounded, or a sleep that ends a billionth too early is followed by one that is too short to move a clock.
        self._tokens = round(min(self._most, self._tokens + (now - self._counted) * self._per_second), 9)
        self._counted = now
        return self._tokens
