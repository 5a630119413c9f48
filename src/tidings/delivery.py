"""A message in a group's hands, and what may become of it: values that cross SEAM 1 (`engine`).

A worker has many of them in hand for a moment each. With `gc=False` those of the happy path are nothing to the garbage
collector, which would go through the whole process again and again for them: nothing they refer to refers back.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from .signals import Headers

Reason = Literal[
    "handler_error", "timeout", "crash_loop", "undecodable", "invalid", "unknown_type", "expired", "rejected"
]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A message as it stands in the log."""

    position: int
    subject: str
    time: float
    """When the engine stored it, seconds since 1970."""
    headers: Headers
    body: bytes


class Delivery(msgspec.Struct, eq=False, gc=False):
    """One message leased to this connection for one group, until it is settled or the lease ends."""

    entry: Entry
    group: str
    deliveries: int
    """How often the engine has handed it out to this group, this time included; prefetch counts too."""
    attempts: int
    """How often a handler of this group has really tried and failed before (since the last redrive)."""
    deadline: float
    """`clock.monotonic()` after which nothing may be settled any more: the lease may be somebody else's."""
    token: Any = None
    """The engine's own note of where to settle it; it does not refer to the delivery."""
    crashes: int = 0
    """How often a handler of this group has begun it (see `Engine.begin`) and never came to an end; since the last
    redrive."""
    replay: str = ""
    """The id of the replay by which the group got it again (`redrive` for what had expired); empty on its first way."""
    dropped: bool = False
    """A dead letter of an ordered group that somebody has discarded: nothing is to run, and settling it lets go what
    waits behind it."""
    returned: int = 0
    """How many of the earlier deliveries were handed back in good order: an engine may leave out the first two."""

    @property
    def unexplained(self) -> int:
        """How many of the earlier deliveries neither failed nor were handed back: their readers may have died."""
        return self.deliveries - 1 - self.attempts - self.returned


class Failure(msgspec.Struct, frozen=True):
    """What went wrong, for people: kept with the retry and in the dead letter."""

    error: str
    """Type name of the exception, or a word for what happened without one."""
    message: str
    traceback: str = ""
    handler: str = ""
    host: str = ""
    version: str = ""


class Done(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Handled; it never comes back to this group."""

    delivery: Delivery


class RetryAfter(msgspec.Struct, frozen=True, eq=False):
    """The handler tried and failed: back to the group not before `delay` seconds, with one attempt more."""

    delivery: Delivery
    delay: float
    failure: Failure


class Dead(msgspec.Struct, frozen=True, eq=False):
    """A person is needed: stored as a dead letter, then gone from the group."""

    delivery: Delivery
    reason: Reason
    failure: Failure

    @property
    def attempts(self) -> int:
        """What the dead letter says: the attempts counted before, and this one if a handler ran; crashes count too."""
        if self.reason == "crash_loop":
            return self.delivery.attempts + self.delivery.crashes
        return self.delivery.attempts + (self.reason in ("handler_error", "timeout", "rejected"))


class Release(msgspec.Struct, frozen=True, eq=False):
    """Handed back untouched after `delay` seconds; burns no attempt."""

    delivery: Delivery
    delay: float = 0.0


class Park(msgspec.Struct, frozen=True, eq=False):
    """Of an ordered group: set aside behind an earlier message of its key, until `Engine.unpark`."""

    delivery: Delivery
    behind: int
    """Position of the earlier one."""


Outcome: TypeAlias = Done | RetryAfter | Dead | Release | Park
