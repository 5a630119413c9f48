"""Failures, told at once to whoever watches: a worker says on a live channel what it has just settled as failed.

The notice is a hint for people who look at the moment (push, `receipt.wait`). What counts is what the engine has
stored: a notice that is lost, because a worker died behind the settling or nobody listened, is made up for by asking
(`progress.look`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from ..engine import Dead, DeadLetter, Engine, Entry, Failure, Outcome, Reason, RetryAfter
from ..errors import TidingsError
from ..message import CORRELATION, decode_header, identity

log = logging.getLogger("tidings.failures")

_MOST: Final = 1000
"""Notices that wait to be told; beyond that the oldest are dropped: whoever watches asks anyway."""
_AT_ONCE: Final = 100


class Failed(msgspec.Struct, frozen=True):
    """One group has failed on one message. Holds nothing of the error but its type: texts may carry secrets."""

    group: str
    position: int
    subject: str
    id: str
    correlation: str
    """The id of the message that began the chain."""
    state: Literal["retrying", "dead"]
    attempts: int
    reason: Reason
    """Of the dead letter; of a retry it is `handler_error`, and `error` says which."""
    error: str
    """Type name of the exception."""
    text: str = ""
    """What a person may read: the text given to `Reject`, else empty."""


def failed(entry: Entry, group: str, reason: Reason, failure: Failure, attempts: int, namespace: str) -> Failed:
    """The notice of a failure for good."""
    id, chain = identity(entry, namespace), entry.headers.get(CORRELATION)
    return Failed(
        group,
        entry.position,
        entry.subject,
        id,
        decode_header(chain) if chain else id,
        "dead",
        attempts,
        reason,
        failure.error,
        failure.message if reason == "rejected" else "",
    )


def of_letter(letter: DeadLetter, namespace: str) -> Failed:
    """What may be told of a dead letter."""
    return failed(letter.entry, letter.group, letter.reason, letter.failure, letter.attempts, namespace)


def channel(namespace: str) -> str:
    """Where failures are told; outside of everything that is stored."""
    return f"_tw.{namespace}.failed"


class Teller:
    """Tells the failures that a worker settles, in a task of its own: no settling waits for it."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        self._engine = engine
        self._namespace = namespace
        self._waiting: list[Failed] = []
        self._task: asyncio.Task[None] | None = None

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Note what has been settled; returns at once."""
        for outcome in outcomes:
            if isinstance(outcome, Dead | RetryAfter):
                self._waiting.append(self._notice(outcome))
        if self._waiting and (self._task is None or self._task.done()):
            del self._waiting[:-_MOST]
            self._task = asyncio.create_task(self._tell(), name="tidings-failures")

    async def stop(self) -> None:
        """Tell what is left, for a second at most."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=1.0)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _notice(self, outcome: Dead | RetryAfter) -> Failed:
        delivery = outcome.delivery
        if isinstance(outcome, Dead):
            reason, attempts = outcome.reason, outcome.attempts
        else:
            reason, attempts = "handler_error", delivery.attempts + 1
        notice = failed(delivery.entry, delivery.group, reason, outcome.failure, attempts, self._namespace)
        return notice if isinstance(outcome, Dead) else msgspec.structs.replace(notice, state="retrying")

    async def _tell(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
            try:
                await self._engine.broadcast(channel(self._namespace), msgspec.json.encode(some), {})
            except TidingsError as error:
                log.debug("%d failures were not told: %s", len(some), error)


def heard(body: bytes) -> list[Failed]:
    """The notices in what was said on the channel; nothing if somebody else has spoken there."""
    try:
        return msgspec.json.decode(body, type=list[Failed])
    except msgspec.DecodeError as error:
        log.warning("not a notice of failures: %s", error)
        return []
