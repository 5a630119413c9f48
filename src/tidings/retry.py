"""When a failed message comes back, and the two outcomes a handler may raise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .errors import ConfigError, InvalidMessage, PublishInTransaction

_PROGRAM: Final = frozenset((ConfigError, InvalidMessage, PublishInTransaction))
"""Errors by which Tidings says that the program is wrong: what it was asked for would be refused at each attempt."""


class Outcome(Exception):
    """Base of what a handler raises to say how its message goes on; not a `TidingsError`."""


class RetryLater(Outcome):
    """Not now: the message comes back after `after` seconds (by default as the retry policy says).

    Counts as an attempt, so that a condition that never comes true ends as a dead letter.
    """

    def __init__(self, text: str = "", *, after: float | None = None) -> None:
        if after is not None and not (isinstance(after, int | float) and 0 <= after < math.inf):
            raise ConfigError(f"RetryLater(after={after!r}): write seconds, as in after=30")
        super().__init__(text or "the handler asked to be tried again later")
        self.after = after


class Reject(Outcome):
    """Never: the message becomes a dead letter at once, with the reason given."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how late a failing message is tried again: exponential backoff with full jitter.

    The delay before try n + 1 is drawn evenly from 0 to `first * 2 ** (n - 1)` seconds, at most `most`: spreading
    retries over the whole range is what keeps a recovering database from being hit by all of them at once
    (Brooker, "Exponential Backoff And Jitter", 2015).

    What only a change of the program can mend is a dead letter at once: `ConfigError`, `InvalidMessage` (an event that
    cannot be published) and `PublishInTransaction`, unless `per` says otherwise.
    """

    attempts: int = 8
    """Tries in all; after the last one the message becomes a dead letter. 1 means: never again."""
    first: float = 1.0
    """Upper bound of the first delay, seconds."""
    most: float = 300.0
    """Upper bound of every delay, seconds."""
    per: Mapping[type[BaseException], RetryPolicy] = field(default_factory=dict)
    """Other policies for some exception types; the closest base class wins."""

    def __post_init__(self) -> None:
        if not all(isinstance(number, int | float) for number in (self.attempts, self.first, self.most)):
            raise ConfigError(f"{self!r}: attempts is a number, first and most are seconds")
        if self.attempts < 1 or not 0 <= self.first <= self.most or math.isinf(self.most):
            raise ConfigError(f"{self!r}: attempts must be at least 1, and 0 <= first <= most < infinity")
        for error, policy in self.per.items():
            if not (isinstance(error, type) and issubclass(error, BaseException) and isinstance(policy, RetryPolicy)):
                raise ConfigError(f"per={{{error!r}: {policy!r}}}: write per={{ValueError: tidings.RetryPolicy(…)}}")

    def applied_to(self, error: BaseException) -> RetryPolicy:
        """The policy for this error."""
        for base in type(error).__mro__:
            if base in self.per:
                return self.per[base]
            if base in _PROGRAM:
                return NEVER
        return self

    def delay(self, failed: int, chance: Callable[[float, float], float] = random.uniform) -> float | None:
        """Seconds until the next try after `failed` failed ones, or None when there is none."""
        if failed >= self.attempts:
            return None
        bound = min(self.most, self.first * 2.0 ** min(failed - 1, 60))
        return chance(0.0, bound)

    @classmethod
    def parse(cls, text: str) -> RetryPolicy:
        """From a setting: `attempts=3,first=0.1,most=1`."""
        values: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, _, value = part.partition("=")
            if name not in ("attempts", "first", "most"):
                raise ConfigError(f"retry {text!r}: write attempts=8,first=1,most=300 (seconds)")
            try:
                values[name] = int(value) if name == "attempts" else float(value)
            except ValueError:
                raise ConfigError(f"retry {text!r}: {value!r} is not a number") from None
        if "most" not in values and values.get("first", 0) > 300:
            values["most"] = values["first"]
        return cls(**values)


NEVER = RetryPolicy(attempts=1)
"""For `RetryPolicy(per={ValueError: NEVER})`: straight to the dead letters."""
