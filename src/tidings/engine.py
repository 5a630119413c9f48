"""SEAM 1: what the rest of Tidings asks of an engine, and the values that cross.

An engine carries messages and knows groups; it knows no types, no handlers, no retry policy. Everything above this
file works on every engine, and the conformance suite (`tidings.conformance`) holds each engine to what is written on
the methods here. Two more rules hold for all of them:

- *Cancelling* any call loses nothing: a cancelled `publish` may or may not have stored (repeat it with the same ids),
  a cancelled `pull` leaves its messages to the next `pull`, a cancelled `settle` leaves them to their leases.
- *Connection lost*: calls wait for the engine to come back up to their own time limit, then raise
  `EngineUnavailable`, or `Unconfirmed` where the engine may have acted. No restart of the application is ever needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Literal, Protocol

import msgspec

from .delivery import Dead as Dead
from .delivery import Delivery as Delivery
from .delivery import Done as Done
from .delivery import Entry as Entry
from .delivery import Failure as Failure
from .delivery import Outcome as Outcome
from .delivery import Park as Park
from .delivery import Reason as Reason
from .delivery import Release as Release
from .delivery import RetryAfter as RetryAfter
from .signals import LISTENER_ROOM as LISTENER_ROOM
from .signals import Backlog as Backlog
from .signals import Headers as Headers
from .signals import Lagged as Lagged
from .signals import Reply as Reply
from .signals import Responder as Responder
from .signals import Signal as Signal
from .subjects import matches

FOR_PUBLISHERS: Final = 0.9
"""Part of a limited store that publishers may fill; the rest is for dead letters, redrive and retries."""

KEEP_LEASE: Final = 0.0
"""As a group's lease: what the group has already, or the default for a new one."""


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message on its way into the log."""

    subject: str
    body: bytes
    headers: dict[str, str]
    id: str
    """Identity together with the subject: the same pair is stored once within the engine's dedupe window."""
    not_before: float | None = None
    """Seconds since 1970 before which no group gets it; None is now."""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Where a published message stands in the log."""

    position: int
    """Its place, rising with each message; 0 for one that waits for its `not_before`, or may have waited."""
    duplicate: bool = False
    """The id was known already: nothing new was stored."""


class Skip(msgspec.Struct, frozen=True):
    """Entries on `filter` with `since <= position <= upto` that another group had claimed already."""

    filter: str
    since: int
    upto: int


class Claim(msgspec.Struct, frozen=True):
    """One filter of a group, and from where on it wants what matches."""

    filter: str
    since: int = 1
    """Position of the first entry wanted."""
    skip: tuple[Skip, ...] = ()

    def wants(self, subject: str, position: int) -> bool:
        """Whether this claim hands the entry to its group."""
        if position < self.since or not matches(self.filter, subject):
            return False
        return not self.skip or not any(s.since <= position <= s.upto and matches(s.filter, subject) for s in self.skip)


class Group(msgspec.Struct, frozen=True):
    """A named set of competing readers, as an engine needs to know it."""

    name: str
    claims: tuple[Claim, ...]
    lease: float = 30.0
    """Seconds without `extend` after which a delivery goes to somebody else; `KEEP_LEASE` changes nothing."""
    paused: bool = False
    """`pull` of a paused group waits and gets nothing."""
    ordered: bool = False
    """Its messages are handed out oldest first, to one connection at a time: see `Engine.pull`."""

    def wants(self, subject: str, position: int) -> bool:
        """Whether any claim hands the entry to the group."""
        return any(claim.wants(subject, position) for claim in self.claims)


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that needs a person, with its original bytes and headers."""

    group: str
    entry: Entry
    """The original; its `position` names the dead letter together with `group`."""
    reason: Reason
    failure: Failure
    attempts: int
    """Attempts made, the last one included; 0 when no handler ever ran."""
    died: float
    """Seconds since 1970."""
    original: bytes | None = None
    """The body as it was published, once somebody has amended it; `entry.body` is what a redrive delivers."""
    replay: str = ""
    """The replay in which it died, if any."""

    @property
    def redriven_as(self) -> str:
        """`Delivery.replay` of its redrive: its own; what has expired gets one, because its time counts no more."""
        return self.replay or ("redrive" if self.reason == "expired" else "")

    @property
    def key(self) -> str:
        """What `dlq show` and `dlq redrive` take: `group/position`."""
        return f"{self.group}/{self.entry.position}"


class GroupState(msgspec.Struct, frozen=True):
    """What one group has to do with one entry."""

    state: Literal["waiting", "leased", "retrying", "parked", "done", "dead", "not wanted"]
    detail: str = ""
    """By whom, until when, why: one short sentence, may be empty."""
    behind: int | None = None
    """Of what is parked: the position of what it waits for."""


class GroupStats(msgspec.Struct, frozen=True):
    """Counts of one group."""

    waiting: int
    """Ready and not handed out."""
    leased: int
    """In the hands of a reader (on engines that cannot tell: delayed ones too)."""
    delayed: int
    """Waiting for their retry time, as far as the engine can tell them from leased ones."""
    dead: int
    pulling: int
    """Readers that are waiting for messages right now."""
    parked: int = 0
    """Set aside behind an earlier one of their key; only in ordered groups."""

    @property
    def pending(self) -> int:
        """Everything not yet handled."""
        return self.waiting + self.leased + self.delayed + self.parked


class Stats(msgspec.Struct, frozen=True):
    """Counts of one namespace."""

    messages: int
    bytes: int
    first: int
    """Position of the oldest entry still stored (of an empty log: where it would be)."""
    last: int
    """Position of the newest entry, 0 when there never was one."""
    groups: dict[str, GroupStats]


class Space(msgspec.Struct, frozen=True):
    """Room for messages, in bytes of one copy."""

    used: int
    """What is stored, and whatever shares the limit with it."""
    limit: int = -1
    """-1 for none that the engine knows of."""

    @property
    def share(self) -> float:
        """Part of the limit that is used; 0 without a limit."""
        return self.used / self.limit if self.limit > 0 else 0.0

    def takes(self, size: int) -> bool:
        """Whether publishers may add so many bytes."""
        return size <= self.room

    @property
    def room(self) -> float:
        """Bytes that publishers may still add; infinite without a limit."""
        return float("inf") if self.limit < 0 else self.limit * FOR_PUBLISHERS - self.used


class Record(msgspec.Struct, frozen=True):
    """A small piece of shared state and its revision."""

    value: bytes
    revision: int


class Engine(Protocol):
    """A connection to one namespace of whatever carries the messages. See the module's text for the common rules."""

    @property
    def description(self) -> str:
        """For people: kind, address without password, namespace."""
        ...

    @property
    def durable(self) -> bool:
        """Whether stored messages outlive the process that holds them; the one declared difference between engines."""
        ...

    @property
    def max_message(self) -> int:
        """Bytes that body, subject and headers of one message may have together."""
        ...

    async def open(self) -> None:
        """Connect and create what the namespace needs; idempotent.

        Raises `EngineUnavailable` naming the address, the likely cause and what to do, within 10 seconds.
        """
        ...

    async def close(self) -> None:
        """Hand back what was pulled and not settled, end all waiting calls with `Closed`, disconnect; idempotent."""
        ...

    async def declare(self, groups: Sequence[Group]) -> None:
        """Make sure the groups exist as described; idempotent, and safe from many processes at once.

        An existing group keeps its place. A claim that is new to it also hands it what is already stored from the
        claim's `since` on. Claims are never taken away here; `paused` is applied at once.
        """
        ...

    async def forget(self, group: str) -> None:
        """Remove a group with its place, its retries and its dead letters; unknown ones are no error."""
        ...

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        """Store all, in their order, and return when the last is as durable as the engine's setting promises.

        Raises `TooLarge` or `InvalidMessage` before anything is sent; `StoreFull`; `Unconfirmed` when no answer came
        after repeating with the same ids for `timeout` seconds of the engine (10 by default). Then some may be
        stored; repeating them all is safe.
        """
        ...

    async def delayed(self, limit: int) -> list[Outgoing]:
        """Messages that wait for their `not_before`, as they were published, the oldest `limit` of them."""
        ...

    async def cancel(self, subject: str, id: str) -> bool:
        """Take back a message that waits for its `not_before`: True if nobody will get it any more, False if it is
        not (or no longer) waiting.

        The pair of subject and id stays known for the dedupe window. Raises `Unconfirmed` when no answer came: then
        repeat it.
        """
        ...

    async def pull(self, group: str, limit: int, wait: float) -> list[Delivery]:
        """Lease up to `limit` messages; wake as soon as one is there, `[]` after `wait` seconds.

        Never waits for a batch to fill. None of them is leased to anybody else. The engine may hold up to as many more
        for the next `pull` of this connection, whose leases it keeps itself. Raises `Conflict` for a group that is
        not declared.

        Of an *ordered* group nothing is handed out while anybody else has, or may have, a delivery of it, or while one
        waits for a delay; then the oldest first, so that nothing older of the group comes later, but for what is put
        back (`redrive`, `replay`, `unpark`). What was put back before the first pull has its place among the others.
        Two connections that pull at the same time may wait for each other: see to it that there is one (`order`).
        """
        ...

    async def stop_pulling(self, group: str) -> None:
        """Ask for no more and hand back, at once and without burning an attempt, what waits here for a `pull`."""
        ...

    async def begin(self, delivery: Delivery) -> None:
        """Note, before a handler runs what may have killed its process, that it begins: durable on return.

        Any outcome takes the note back. When none comes before the lease ends, each later `Delivery` of the message
        to the group has one more in `crashes`. Raises `Conflict` for a delivery whose lease has moved on, and
        `EngineUnavailable` or `Unconfirmed`: then nothing may run; repeating it counts once.
        """
        ...

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Say what became of deliveries, many at a time.

        `Done` is final (an engine may repeat the last fraction of a second of them after a crash of its server).
        `RetryAfter` and `Dead` are stored before the delivery is given up: a crash in between repeats the delivery,
        and never gives a second dead letter for one message and group. A delivery whose lease has moved on to
        somebody else is ignored. Raises `EngineUnavailable` when the engine cannot be reached; where it refuses some,
        all others are settled before that raises. Repeating is safe.
        """
        ...

    async def keep(self, outcome: RetryAfter | Release) -> None:
        """Settle a delivery without giving it up: it stays in these hands, to be run again after the delay, and its
        lease is to be renewed meanwhile.

        The attempt of a `RetryAfter` is durable on return, and counted in `delivery.attempts`; a beginning is taken
        back. Repeating counts once. Raises `Conflict` for a delivery whose lease has moved on, `EngineUnavailable` or
        `Unconfirmed`.
        """
        ...

    async def parked(self, group: str, after: int = 0, limit: int = 100) -> list[Entry]:
        """What an ordered group has set aside, by rising position behind `after`; only an empty page is the last."""
        ...

    async def unpark(self, group: str, positions: Sequence[int]) -> int:
        """Put back to the group what was set aside, in this order, each in one step with its attempts; returns how
        many. One that somebody else put back first is left out, so that repeating is safe."""
        ...

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Start their leases again from now and move their `deadline`; lost ones are ignored."""
        ...

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float = 0.0) -> list[Entry]:
        """The stored entries behind position `after` that match any filter, oldest first, `limit` at most.

        With `wait`, returns as soon as there is one, or `[]` after that many seconds. Changes nothing for any group.
        """
        ...

    async def subjects(self, filter: str) -> dict[str, int]:
        """The subjects of stored entries that match `filter`, with the number of entries on each."""
        ...

    async def states(self, entry: Entry) -> dict[str, GroupState]:
        """For each declared group, what it has to do with this entry (`tidings explain`)."""
        ...

    async def dead_letters(self, group: str | None = None, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Dead letters of one group or all, by rising original position behind `after`; pages while growing.

        Those of one position come together, even beyond `limit`, so that `after` loses none; large ones make a page
        shorter. Only an empty page is the last.
        """
        ...

    async def redrive(self, letters: Sequence[DeadLetter]) -> int:
        """Put each back to the one group that failed, with no attempts counted, and remove the dead letter: one step.

        Returns how many were moved; one that somebody else moved or discarded first is left out, so that repeating
        redrives nothing twice.
        """
        ...

    async def discard(self, letters: Sequence[DeadLetter]) -> int:
        """Remove dead letters for good; returns how many were there. An ordered group is told by a delivery that is
        `dropped`, in one step with the removal."""
        ...

    async def amend(self, letter: DeadLetter, body: bytes) -> bool:
        """Give a dead letter another body, which a redrive delivers under the same headers and identity. The first
        body stays with it as `original`, also when it dies again.

        False when it is gone, or has died anew or been amended since `letter` was read. Raises `TooLarge` when both
        bodies do not fit into one message. After `Unconfirmed` read it again.
        """
        ...

    async def bury(self, letters: Sequence[DeadLetter]) -> int:
        """Store dead letters that were read before and are gone, each where its group has none for its position;
        returns how many. Only for messages that the group has nothing else to do with.

        Raises `Conflict` for a group that is not declared. Cancelled or without an answer, repeating is safe.
        """
        ...

    async def replay(self, group: str, entries: Sequence[Entry], id: str) -> int:
        """Give stored entries to one group again, or for the first time, with no attempts counted and `id` as their
        `Delivery.replay`. Other groups notice nothing.

        Left out are those that the group has still to handle, and its dead letters. Returns how many were given. Raises
        `Conflict` for a group that is not declared. Cancelled or without an answer some may be given: repeating it
        with the same id gives those again at most that were handled meanwhile.
        """
        ...

    async def broadcast(self, channel: str, body: bytes, headers: Headers) -> int | bool | None:
        """Say something to whoever listens now: the number of listeners, or True (heard), False (nobody), or None
        (the engine cannot know). At most once, so `EngineUnavailable` comes at once when the connection is lost on the
        way; never blocks on a slow listener."""
        ...

    def listen(self, channels: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[Signal | Lagged]]:
        """Hear what is said on the channels (filters). Once entered, everything said later arrives, in order per
        sender; on a cluster some moments may pass until each of its servers knows of who has come. Where something is
        missing stands a `Lagged`: after a lost connection was re-established, and where the oldest signals had to be
        dropped because too many were waiting."""
        ...

    async def request(self, subject: str, body: bytes, headers: Headers, timeout: float) -> Reply:
        """Ask one responder, once. Raises `NoResponder` at once when there is none, `EngineUnavailable` when the
        connection is lost before the answer came, `RequestTimeout` after `timeout` seconds."""
        ...

    def serve(self, subject: str, group: str, responder: Responder) -> AbstractAsyncContextManager[None]:
        """Answer requests of `subject` (a filter) while entered; those of one `group` share the requests. On a cluster
        some moments may pass until each of its servers knows of who has come."""
        ...

    async def recall(self, key: str) -> Record | None:
        """The shared state under `key`, or None."""
        ...

    async def register(self, key: str, value: bytes, revision: int) -> int:
        """Write shared state if its revision is still `revision` (0: not there yet); returns the new one.

        Raises `Conflict` when somebody else wrote first. An answer that was lost is found out by reading again.
        """
        ...

    async def stats(self) -> Stats:
        """Counts of the namespace; exact when nothing moves."""
        ...

    async def space(self) -> Space:
        """How full the store is. Above `FOR_PUBLISHERS` of its limit `publish` raises `StoreFull`, and everything else
        goes on."""
        ...

    async def purge(self, filter: str, first: int, below: int) -> int:
        """Remove what stands on `filter` at `first <= position < below`; returns how many entries went.

        What a declared group has still to handle stays, whatever is asked for. So may entries behind the oldest that a
        group has still to handle on the same subject, and some of very many: the next call goes on. Dead letters keep
        all that is needed to show and to redrive them. Cancelling leaves the rest where it is.
        """
        ...
