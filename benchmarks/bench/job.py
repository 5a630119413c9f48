"""What one child process is asked to do, and the message that every contender carries."""

from __future__ import annotations

import time

import msgspec


class Job(msgspec.Struct, frozen=True):
    """The order for one child process; it travels as JSON on the command line."""

    contender: str
    role: str
    """`publish`, `fill`, `pace`, `work`, `serve` or `ask`."""
    url: str
    broker_pid: int
    count: int
    """How many messages; a worker reports when it has seen them."""
    size: int = 128
    """Bytes of the body, about."""
    how: str = "many"
    """`publish`: `sequential`, `concurrent` or `many`."""
    flight: int = 1
    """`ask`: questions under way at the same time."""
    rate: float = 200.0
    """`pace`: messages per second."""
    other_groups: int = 0
    """Groups of the same worker whose subjects do not match."""
    database: str = ""
    """URL of the database that the handler writes to; empty for a handler that does nothing."""
    writes: str = "add"
    """What it does there: `add` (one object), `save` (an object, its id, a follow-up event), `batch` (one statement for
    many)."""
    poison: str = ""
    """What is wrong with some of the messages, which can never be saved: their handler `raises`, or their row is
    `refused` by the database. Empty is nothing."""
    poisoned: int = 100
    """One message in so many is poison."""
    profile: str = ""
    """A file for the profile of a worker; empty is none."""


class Body(msgspec.Struct):
    """The message that is carried: `sent` is the moment it was meant to leave, 0 where nobody asks for latency."""

    number: int
    sent: float
    text: str


def bodies(count: int, size: int) -> list[Body]:
    return [body(number, size) for number in range(count)]


def body(number: int, size: int, sent: float = 0.0) -> Body:
    bare = len(msgspec.json.encode(Body(number, sent, "")))
    return Body(number, sent, "x" * max(0, size - bare))


def now() -> float:
    """Seconds on a clock that all processes of this machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
