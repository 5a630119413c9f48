"""SEAM 2, the unit of work: one transaction of a user's database around one or more messages.

The worker owns the transaction. It begins a unit, asks which messages are new (`fresh`), gives the handler the
unit's connection, hands the handler's follow-ups to `stage`, and commits: effects, inbox marks and follow-ups become
visible together or not at all. Afterwards it acknowledges the message; a crash in between brings the message back,
and `fresh` says that it is known.

`tidings.sql` implements the seam for SQLAlchemy (async and sync sessions, SQLite and PostgreSQL); other ways to a
database (Django's ORM, plain drivers) can join by implementing `Units`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

import msgspec

from .engine import Outgoing


class InboxKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """What makes a handled message recognisable for ever: who handled it, and the message's identity."""

    group: str
    subject: str
    id: str


class Deposed(Exception):
    """A later epoch has begun: another worker has taken over, and this transaction must not commit."""


class Unit(Protocol):
    """One open transaction. Everything said to it happens with `commit` or not at all."""

    connection: Any
    """What the handler gets: of the type its annotation names. Its `commit` and `rollback` raise."""

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a plain function where `connection` may be used (a sync session: in the unit's own thread).

        Cancelling gives up the wait: a thread cannot be stopped. What it goes on to do in there is rolled back, and
        its connection comes back, after its end.
        """
        ...

    async def fresh(self, keys: Sequence[InboxKey]) -> set[InboxKey]:
        """Mark the messages as handled and return those that were not.

        If another open transaction marks one of them, waits for its end. Keys are written in sorted order, so that
        two workers never deadlock here.
        """
        ...

    async def forget(self, keys: Sequence[InboxKey]) -> None:
        """Take back marks that this unit's `fresh` made: these messages are not handled by it after all."""
        ...

    async def stage(self, messages: Sequence[Outgoing]) -> None:
        """Put follow-ups into the outbox. They leave after the commit."""
        ...

    async def fence(self, name: str, epoch: int) -> None:
        """Last thing before the commit: raise `Deposed` unless `epoch` is the latest that `Units.enter` has begun under
        the name. Until this transaction has ended no later one begins."""
        ...

    async def commit(self) -> None:
        """Make it all durable. Raises what the database raises; after a lost connection the outcome is unknown and
        the inbox decides on the next delivery."""
        ...

    async def rollback(self) -> None:
        """Undo everything; safe after a failed commit and on a broken connection."""
        ...


class Turn(msgspec.Struct, frozen=True):
    """Committed messages of this process, in the order of their commits."""

    ready: list[Outgoing]
    behind: list[Outgoing]
    """Not yet to be sent: an earlier message with the same key has not left."""


class Interleaved(Exception):
    """A handler wants to read although it shared a flush with handlers that have not ended: it could see their halves.
    The transaction must be rolled back; run without `meet`, the handlers never see one another."""

    def __init__(self) -> None:
        super().__init__("the handler reads after a flush that it shared with others; it runs again without")


class Member(Protocol):
    """One message's part of a `Shared` unit. Members run one after another: from `join` on, or while it waits in
    `meet`, another one may run."""

    connection: Any
    """What the handler gets, as of a `Unit`; no other member has it or its objects."""

    @property
    def pure(self) -> bool:
        """Whether the database has heard nothing of it yet, and it has read nothing."""
        ...

    @property
    def blind(self) -> bool:
        """Whether it has read nothing: it knows of the database what was generated for its own rows, if they are there
        already."""
        ...

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """As `Unit.run`."""
        ...

    async def join(self) -> None:
        """The handler has ended well: what it leaves unwritten is written with the next common flush. May raise what
        the database raises about this member's own rows."""
        ...


Meet: TypeAlias = Callable[[Member], Awaitable[None]]


class Shared(Protocol):
    """One open transaction for many messages. What is said of `Unit` holds for its methods.

    Its effects are those of its members one after another, in the order of their `join`: rows of members that have
    joined are written before another one reads.
    """

    @property
    def busy(self) -> bool:
        """Whether the database is being waited for right now."""
        ...

    @property
    def interleaved(self) -> bool:
        """Whether a member was refused with `Interleaved`: nothing of the unit may be committed."""
        ...

    @property
    def broken(self) -> bool:
        """Whether a common flush has failed, maybe inside a member that is not to blame."""
        ...

    def member(self, meet: Meet | None) -> Member:
        """Begin the next member. `meet` is awaited where its handler flushes and has only added objects so far; it
        returns after `flush` was called with it. Without `meet` every flush is one at once."""
        ...

    @property
    def refused(self) -> list[tuple[Member, Exception]]:
        """Members that had joined since `mark` and whose rows the database did not take: nothing of them is in the
        transaction."""
        ...

    @property
    def refusals(self) -> int:
        """Of how many members in all the database did not take the rows of a common flush."""
        ...

    async def mark(self) -> None:
        """Set a savepoint, which `keep` or `undo` ends; one at a time."""
        ...

    async def keep(self) -> None:
        """What was done since `mark` belongs to the transaction. Raises if that is not so: a member has rolled it back,
        or the database has given it up after an error that a member swallowed. Then `undo` it with another `mark`."""
        ...

    async def undo(self) -> None:
        """Take back all that was done since `mark`."""
        ...

    async def flush(self, met: Sequence[Member]) -> None:
        """Write what joined members have left, and what the members that wait in `meet` have added, all together.

        If the database refuses it, raises. Behind a `mark` it finds out whose rows are to blame and goes on without
        them: `meet` raises in those that wait there, the others are `refused`.
        """
        ...

    async def fresh(self, keys: Sequence[InboxKey]) -> set[InboxKey]: ...

    async def forget(self, keys: Sequence[InboxKey]) -> None: ...
    async def fence(self, name: str, epoch: int) -> None: ...

    async def stage(self, messages: Sequence[Outgoing]) -> None: ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...


class StagingOutbox(Protocol):
    """The outbox inside somebody else's transaction."""

    async def stage(self, messages: Sequence[Outgoing], after_commit: Callable[[], object] | None = None) -> None:
        """Write the messages into the transaction. `after_commit` is called when it has ended well, maybe in another
        thread; it is a hint that `Units.committed` confirms."""
        ...

    def stage_sync(self, messages: Sequence[Outgoing], after_commit: Callable[[], object] | None = None) -> None:
        """`stage` for a connection that is used without an event loop."""
        ...


class Units(Protocol):
    """Where units of work come from: one database."""

    @property
    def description(self) -> str:
        """For people: the database's URL without password."""
        ...

    def accepts(self, annotation: object) -> bool:
        """Whether a handler parameter of this type is given this database's connection."""
        ...

    def begin(self, annotation: object, name: str = "") -> AbstractAsyncContextManager[Unit]:
        """A new transaction for a handler with that annotation; `name` tells who looks at the database whose it is.
        Leaving the context without `commit` rolls back and gives the connection back to its pool, also on cancel."""
        ...

    def shares(self, annotation: object) -> bool:
        """Whether handlers with that annotation can share a transaction."""
        ...

    def share(self, annotation: object, name: str = "") -> AbstractAsyncContextManager[Shared]:
        """As `begin`, for many messages."""
        ...

    def transient(self, error: BaseException) -> bool:
        """Whether `error` says something about the database being away or busy rather than about the message:
        connection lost, deadlock, serialization failure, locked. Such failures burn no attempt."""
        ...

    def conflict(self, error: BaseException) -> bool:
        """Whether the transaction may well succeed when it is run again at once: it lost against another one (deadlock,
        serialization failure, busy), or its connection was lost, maybe during the commit: then `fresh` tells what
        became of it. All of them are `transient`."""
        ...

    async def prepare(self) -> None:
        """Check the framework's tables; SQLite's are created here. Raises `DatabaseBehind` naming the command."""
        ...

    def outbox(self, connection: Any) -> StagingOutbox:
        """The outbox inside an open transaction that the application owns."""
        ...

    async def enter(self, name: str, epoch: int) -> int:
        """Begin an epoch in this database: durable on return, and no transaction of an earlier one commits after it.
        Waits for those that have passed their `fence`. Returns the latest epoch: a greater one is in force and stays.
        """
        ...

    async def committed(self, messages: Sequence[Outgoing]) -> Turn:
        """Those of the messages staged in this process whose transaction has really committed and that it is to send;
        a savepoint or an outer transaction may have taken some back."""
        ...

    async def oldest_unsent(self) -> float | None:
        """Age in seconds of the oldest message that waits in the outbox, None when none does; refused ones do
        not count."""
        ...

    async def unsent(self, limit: int) -> list[Outgoing]:
        """Lease up to `limit` staged messages that nobody has sent for a while, oldest first: leftovers of crashed
        processes. Two relays never get the same one at the same time, nor one while an earlier one with the same key
        is somebody else's to send."""
        ...

    async def mark_sent(self, messages: Sequence[Outgoing]) -> None:
        """They are in the log: take them out of the outbox."""
        ...

    async def mark_refused(self, message: Outgoing, why: str) -> None:
        """The engine does not take it: it stays in the outbox, is tried again about once an hour, and no other message
        waits for it."""
        ...

    async def prune_inbox(self, older_than: float) -> int:
        """Forget messages handled more than so many seconds ago; returns how many. One that comes back after that is
        handled again: keep them longer than any redelivery can take."""
        ...

    async def close(self) -> None:
        """Give up what the units hold besides the user's own engine; idempotent."""
        ...
