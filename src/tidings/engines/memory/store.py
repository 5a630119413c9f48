"""The memory engine's server: everything that connections share."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final

import msgspec

from tidings.clock import Clock, SystemClock, Timer
from tidings.engine import (
    LISTENER_ROOM,
    Claim,
    Dead,
    DeadLetter,
    Delivery,
    Entry,
    Group,
    GroupState,
    Outcome,
    Outgoing,
    Park,
    Record,
    Release,
    RetryAfter,
    Space,
    Stats,
    Stored,
)
from tidings.errors import Conflict, StoreFull
from tidings.subjects import matches

from .bell import Bell
from .dead import DeadLetters
from .group import GroupQueue
from .live import Channels, Servers
from .log import Log, check

_log: Final = logging.getLogger("tidings.memory")

MAX_MESSAGE: Final = 1024 * 1024


class MemoryStore:
    """What a server would hold: log, groups, dead letters, shared state, channels and responders.

    Belongs to one event loop and is used from its thread only. Every method but `changed` is a block without `await`,
    so each happens at once. `limit` is in bytes (-1: none). The same (subject, id) is stored once within `window`
    seconds. A listener keeps `room` signals that it has not taken yet, the newest.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        limit: int = -1,
        window: float = 120.0,
        room: int = LISTENER_ROOM,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.log = Log(self.clock, window)
        self.dead = DeadLetters()
        self.channels = Channels(room)
        self.servers = Servers()
        self.limit = limit
        self._groups: dict[str, GroupQueue] = {}
        self._delayed: dict[tuple[str, str], tuple[Outgoing, Timer]] = {}
        self._records: dict[str, Record] = {}
        self._requests = 0
        self._changes = Bell()

    @property
    def quiet(self) -> bool:
        """Nothing ready for a group that is not paused, nothing leased, no request waiting for its answer.

        What waits for its time (a retry, a `not_before`) is quiet.
        """
        return self.quiet_but_for(())

    def quiet_but_for(self, resting: Collection[Delivery]) -> bool:
        """`quiet`, and so is what somebody holds without doing anything with it."""
        leases = {delivery.token for delivery in resting}
        return not self._requests and all(queue.quiet_but_for(leases) for queue in self._groups.values())

    async def changed(self) -> None:
        """Return at the next change of anything `quiet` depends on."""
        await self._changes.wait()

    def group(self, name: str) -> GroupQueue:
        """The queue of a declared group, or `Conflict`."""
        queue = self._groups.get(name)
        if queue is None:
            raise Conflict(f"group {name!r} is not declared: call declare() first, or it was removed meanwhile")
        return queue

    def hand_back(self, holder: object) -> None:
        """Free all that a connection holds."""
        for queue in self._groups.values():
            queue.hand_back(holder)

    # Groups

    def declare(self, group: Group) -> None:
        """Add the group, or what is new about it; a new claim also gets what is stored."""
        queue = self._groups.get(group.name)
        if queue is None:
            nothing = Group(group.name, (), paused=group.paused)
            queue = self._groups[group.name] = GroupQueue(nothing, self.clock, self._changes.ring)
        before = queue.group
        claims = before.claims + tuple(claim for claim in group.claims if claim not in before.claims)
        queue.group = msgspec.structs.replace(group, claims=claims, lease=group.lease or before.lease)
        if claims != before.claims:
            self._hand_over(queue, before.claims)
        if before.paused and not group.paused:
            queue.ready.ring()
        self._changes.ring()

    def _hand_over(self, queue: GroupQueue, had: Iterable[Claim]) -> None:
        for entry in self.log:
            known = any(claim.wants(entry.subject, entry.position) for claim in had)
            if not known and queue.group.wants(entry.subject, entry.position):
                queue.add(entry)

    def forget(self, group: str) -> None:
        """Remove the group with all it has."""
        queue = self._groups.pop(group, None)
        if queue is not None:
            queue.clear()
            self.dead.forget(group)

    def states(self, entry: Entry) -> dict[str, GroupState]:
        """What each group has to do with the entry."""
        return {name: self._state(queue, entry) for name, queue in self._groups.items()}

    def _state(self, queue: GroupQueue, entry: Entry) -> GroupState:
        letter = self.dead.find(queue.group.name, entry.position)
        if letter is not None:
            return GroupState("dead", f"{letter.reason}: {letter.failure.error}: {letter.failure.message}")
        return queue.state_of(entry)

    # Publishing

    def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        """Store all or, if one of them is refused, none."""
        sizes = [check(message, MAX_MESSAGE) for message in messages]
        new = sum(size for size, message in zip(sizes, messages, strict=True) if self._known(message) is None)
        if new and not self.space().takes(new):
            raise StoreFull(
                f"the memory store holds {self.log.bytes:,} of {self.limit:,} bytes: start workers for what waits, "
                "or give the store a larger limit"
            )
        return [self._accept(message) for message in messages]

    def _known(self, message: Outgoing) -> int | None:
        return 0 if (message.subject, message.id) in self._delayed else self.log.known(message)

    def _accept(self, message: Outgoing) -> Stored:
        position = self._known(message)
        if position is not None:
            return Stored(position, duplicate=True)
        rest = 0.0 if message.not_before is None else message.not_before - self.clock.time()
        if rest <= 0:
            return Stored(self._append(message))
        timer = self.clock.call_later(rest, partial(self._fall_due, message))
        self._delayed[message.subject, message.id] = (message, timer)
        return Stored(0)

    def _fall_due(self, message: Outgoing) -> None:
        del self._delayed[message.subject, message.id]
        self._append(message)

    def delayed(self, limit: int) -> list[Outgoing]:
        """What waits for its time, by publishing, the oldest first."""
        return [message for message, _ in islice(self._delayed.values(), limit)]

    def cancel(self, subject: str, id: str) -> bool:
        """Whether it was waiting for its time; then it never comes, and its id stays known."""
        found = self._delayed.pop((subject, id), None)
        if found is None:
            return False
        message, timer = found
        timer.cancel()
        self.log.remember(message, 0)
        return True

    def _append(self, message: Outgoing) -> int:
        entry = self.log.append(message)
        for queue in self._groups.values():
            if queue.group.wants(entry.subject, entry.position):
                queue.add(entry)
        self._changes.ring()
        return entry.position

    # Space

    def space(self) -> Space:
        """How full it is."""
        return Space(self.log.bytes, self.limit)

    def purge(self, filter: str, first: int, below: int) -> int:
        """Remove the entries that no group has still to handle; returns how many."""
        gone = [
            entry
            for entry in self.log
            if first <= entry.position < below
            and matches(filter, entry.subject)
            and not any(entry.position in queue for queue in self._groups.values())
        ]
        for entry in gone:
            self.log.remove(entry)
        return len(gone)

    # Settling

    def begin(self, delivery: Delivery) -> None:
        """A handler begins what may have killed others: counts as a crash until an outcome comes."""
        item = self.group(delivery.group).current(delivery)
        if item is None:
            raise Conflict(f"message {delivery.entry.position} is no longer in the hands of this reader")
        item.crashes = delivery.crashes + 1

    def settle(self, outcome: Outcome) -> None:
        """Say what became of a delivery; ignored if it is no longer the holder's."""
        delivery = outcome.delivery
        queue = self._groups.get(delivery.group)
        item = None if queue is None else queue.current(delivery)
        if queue is None or item is None:
            return
        item.crashes = delivery.crashes
        if isinstance(outcome, Release):
            queue.postpone(item, outcome.delay)
        elif isinstance(outcome, RetryAfter):
            queue.postpone(item, outcome.delay, outcome.failure)
        elif isinstance(outcome, Park):
            queue.park(item, outcome.behind)
        else:
            if isinstance(outcome, Dead):
                self.dead.put(self._letter(outcome, item.original))
            queue.finish(item)

    def keep(self, outcome: RetryAfter | Release) -> None:
        """The delivery stays with its holder."""
        delivery = outcome.delivery
        queue = self.group(delivery.group)
        item = queue.current(delivery)
        if item is None:
            raise Conflict(f"message {delivery.entry.position} is no longer in the hands of this reader")
        item.crashes = delivery.crashes
        queue.keep(item, outcome.delay, outcome.failure if isinstance(outcome, RetryAfter) else None)
        delivery.attempts = item.attempts

    def _letter(self, outcome: Dead, original: bytes | None) -> DeadLetter:
        group, entry, died = outcome.delivery.group, outcome.delivery.entry, self.clock.time()
        attempts, replay = outcome.attempts, outcome.delivery.replay
        return DeadLetter(group, entry, outcome.reason, outcome.failure, attempts, died, original, replay)

    def extend(self, delivery: Delivery) -> None:
        """Start the lease again from now, if it is still the holder's."""
        queue = self._groups.get(delivery.group)
        if queue is not None:
            queue.extend(delivery)

    # Dead letters

    def redrive(self, letters: Sequence[DeadLetter]) -> int:
        """Back to the groups that failed; returns how many."""
        moved = 0
        for letter in letters:
            queue = self._groups.get(letter.group)
            kept = None if queue is None else self.dead.take(letter)
            if queue is not None and kept is not None:
                queue.add(kept.entry, kept.original, kept.redriven_as)
                moved += 1
        return moved

    def replay(self, group: str, entries: Sequence[Entry], id: str) -> int:
        """Again to the group, unless it has something to do with them; returns how many."""
        queue, given = self.group(group), 0
        for entry in entries:
            if entry.position not in queue and self.dead.find(group, entry.position) is None:
                queue.add(entry, replay=id)
                given += 1
        return given

    def discard(self, letters: Sequence[DeadLetter]) -> int:
        """Remove for good; returns how many were there."""
        gone = [kept for letter in letters if (kept := self.dead.take(letter)) is not None]
        for letter in gone:
            queue = self._groups.get(letter.group)
            if queue is not None and queue.group.ordered:
                queue.add(letter.entry, replay=letter.replay, dropped=True)
        return len(gone)

    def amend(self, letter: DeadLetter, body: bytes) -> bool:
        """Whether the letter was still as it was read, and has the body now."""
        entry = letter.entry
        first = entry.body if letter.original is None else letter.original
        check(Outgoing(entry.subject, body, dict(entry.headers), ""), MAX_MESSAGE - len(first))
        return self.dead.amend(letter, body)

    def bury(self, letters: Sequence[DeadLetter]) -> int:
        """Store those whose group has none for their position; returns how many."""
        new = 0
        for letter in letters:
            self.group(letter.group)
            if self.dead.find(letter.group, letter.entry.position) is None:
                self.dead.put(letter)
                new += 1
        return new

    # Requests and shared state

    def request_begins(self) -> None:
        """Somebody waits for an answer."""
        self._requests += 1
        self._changes.ring()

    def request_ends(self) -> None:
        """They wait no longer."""
        self._requests -= 1
        self._changes.ring()

    def recall(self, key: str) -> Record | None:
        """The shared state under `key`."""
        return self._records.get(key)

    def register(self, key: str, value: bytes, revision: int) -> int:
        """Write it if its revision is still `revision`."""
        found = self._records.get(key)
        actual = 0 if found is None else found.revision
        if actual != revision:
            raise Conflict(f"{key!r} is at revision {actual}, not {revision}: somebody else wrote first; read it again")
        self._records[key] = Record(value, actual + 1)
        return actual + 1

    def stats(self) -> Stats:
        """Counts of everything."""
        groups = {name: queue.stats(self.dead.count(name)) for name, queue in self._groups.items()}
        log = self.log
        return Stats(len(log), log.bytes, log.first, log.last, groups)
