"""One group of the memory engine: what waits for it, what is leased, what comes back later.

Its items are the messages the group has still to handle. Ready ones stand in a heap by position, so that a redelivery
goes ahead of what is newer and taking one costs O(log n) however many wait. A place in the heap is only a hint: an item
that is no longer waiting when its turn comes is passed over.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from typing import Literal, get_args

from tidings.clock import Clock, Timer
from tidings.engine import Delivery, Entry, Failure, Group, GroupState, GroupStats

from .bell import Bell

State = Literal["waiting", "leased", "delayed", "parked"]


class Lease:
    """The right of one connection to settle one item; compared by identity."""

    __slots__ = ("holder", "item", "until")

    def __init__(self, item: Item, holder: object, until: float) -> None:
        self.item = item
        self.holder = holder
        self.until = until


class Item:
    """One message the group has still to handle."""

    __slots__ = (
        *("attempts", "behind", "crashes", "deliveries", "dropped", "due", "entry", "failure", "kept", "lease"),
        *("original", "replay", "returned", "state", "timer"),
    )

    def __init__(self, entry: Entry, original: bytes | None, replay: str, dropped: bool) -> None:
        self.entry = entry
        self.replay = replay
        self.dropped = dropped
        self.original = original
        """The body as it was published, if the entry has another one by now."""
        self.state: State = "waiting"
        self.deliveries = 0
        self.attempts = 0
        self.returned = 0
        self.crashes = 0
        """Beginnings without an end; the one that is under way counts."""
        self.failure: Failure | None = None
        self.lease: Lease | None = None
        """The newest lease; it stays valid after its end until somebody else takes the item."""
        self.timer: Timer | None = None
        """Ends the lease or the delay."""
        self.due = 0.0
        """Wall time of the end of the delay."""
        self.kept = False
        """Leased, and waiting in the holder's hands for the end of its delay."""
        self.behind = 0
        """Position of what it is parked behind."""


class GroupQueue:
    """The queue of one group. Plain blocks without `await`: each method happens at once."""

    def __init__(self, group: Group, clock: Clock, changed: Callable[[], None]) -> None:
        self.group = group
        self.ready = Bell()
        self._clock = clock
        self._changed = changed
        self._items: dict[int, Item] = {}
        self._heap: list[int] = []
        self._counts: dict[State, int] = dict.fromkeys(get_args(State), 0)
        self._held: Counter[object] = Counter()

    def __contains__(self, position: int) -> bool:
        return position in self._items

    def quiet_but_for(self, resting: Collection[Lease]) -> bool:
        """Nothing is leased, besides what is kept and these, and nothing ready unless the group is paused."""
        leased = (item for item in self._items.values() if item.state == "leased") if self._counts["leased"] else ()
        if not all(item.kept or item.lease in resting for item in leased):
            return False
        return self.group.paused or not self._counts["waiting"]

    def add(self, entry: Entry, original: bytes | None = None, replay: str = "", dropped: bool = False) -> None:
        """A new message for the group, with no attempts counted."""
        item = Item(entry, original, replay, dropped)
        self._items[entry.position] = item
        self._counts["waiting"] += 1
        self._offer(item)

    def take(self, limit: int, holder: object) -> list[Delivery]:
        """Lease up to `limit` ready items to `holder`, oldest first."""
        taken: list[Delivery] = []
        if self.group.paused or (self.group.ordered and self._elsewhere(holder)):
            return taken
        while self._heap and len(taken) < limit:
            item = self._items.get(heapq.heappop(self._heap))
            if item is not None and item.state == "waiting":
                taken.append(self._lease(item, holder))
        if taken:
            self._changed()
        return taken

    def _elsewhere(self, holder: object) -> bool:
        """Whether something of the group is delayed, or in other hands."""
        return self._counts["delayed"] > 0 or self._counts["leased"] > self._held[holder]

    def current(self, delivery: Delivery) -> Item | None:
        """The item if the delivery may still be settled: not settled before and not given to somebody else."""
        item = self._items.get(delivery.entry.position)
        return item if item is not None and item.lease is not None and item.lease is delivery.token else None

    def finish(self, item: Item) -> None:
        """The group has nothing to do with it any more."""
        self._stop(item)
        self._counts[item.state] -= 1
        del self._items[item.entry.position]
        self._freed()

    def postpone(self, item: Item, delay: float, failure: Failure | None = None) -> None:
        """Back to the group after `delay` seconds; with a failure it was an attempt."""
        self._stop(item)
        self._count(item, failure)
        item.returned += failure is None
        if delay <= 0:
            self._return(item)
            return
        self._move(item, "delayed")
        item.due = self._clock.time() + delay
        item.timer = self._clock.call_later(delay, partial(self._return, item))
        self._changed()

    def keep(self, item: Item, delay: float, failure: Failure | None) -> None:
        """Leave it to its holder, who runs it again after `delay` seconds."""
        self._count(item, failure)
        item.kept = delay > 0
        item.due = self._clock.time() + delay
        if item.kept:
            self._clock.call_later(delay, partial(setattr, item, "kept", False))
        self._changed()

    def park(self, item: Item, behind: int) -> None:
        """Set it aside."""
        self._stop(item)
        item.behind = behind
        self._move(item, "parked")
        self._freed()

    def unpark(self, position: int) -> bool:
        """Back to the group, if it is set aside."""
        item = self._items.get(position)
        if item is None or item.state != "parked":
            return False
        self._return(item)
        return True

    def parked(self, after: int, limit: int) -> list[Entry]:
        """What is set aside behind a position."""
        found = sorted(p for p, item in self._items.items() if item.state == "parked" and p > after)
        return [self._items[position].entry for position in found[:limit]]

    @staticmethod
    def _count(item: Item, failure: Failure | None) -> None:
        if failure is not None:
            item.attempts += 1
            item.failure = failure

    def extend(self, delivery: Delivery) -> None:
        """Start the lease again from now, if it has not ended."""
        item = self.current(delivery)
        if item is not None and item.lease is not None and item.state == "leased":
            delivery.deadline = item.lease.until = self._clock.monotonic() + self.group.lease
            self._watch(item, item.lease)

    def hand_back(self, holder: object) -> None:
        """Everything leased to `holder` is ready again, at once."""
        held = [item for item in self._items.values() if item.lease is not None and item.lease.holder is holder]
        for item in held:
            if item.state == "leased":
                self.postpone(item, 0.0)

    def clear(self) -> None:
        """Forget all items; who waits for one looks again and finds the group gone."""
        for item in self._items.values():
            self._stop(item)
        self._items.clear()
        self._counts = dict.fromkeys(get_args(State), 0)
        self._held.clear()
        self.ready.ring()
        self._changed()

    def stats(self, dead: int) -> GroupStats:
        """Counts, with the number of dead letters that the store knows."""
        return GroupStats(**self._counts, dead=dead, pulling=len(self.ready))

    def state_of(self, entry: Entry) -> GroupState:
        """What the group has to do with an entry that is no dead letter of it."""
        item = self._items.get(entry.position)
        if item is None:
            return self._settled_state(entry)
        if item.state == "parked":
            return GroupState("parked", f"behind {item.behind}", item.behind)
        if item.state == "leased" and item.lease is not None and not item.kept:
            rest = item.lease.until - self._clock.monotonic()
            return GroupState("leased", f"by {item.lease.holder}, for {rest:.0f} s more unless renewed")
        at = f"not before {_stamp(item.due)}" if item.state == "delayed" or item.kept else ""
        if item.failure is not None:
            failed = f"attempt {item.attempts} failed with {item.failure.error}: {item.failure.message}"
            return GroupState("retrying", f"{at}; {failed}" if at else failed)
        return GroupState("waiting", at or ("the group is paused" if self.group.paused else ""))

    def _settled_state(self, entry: Entry) -> GroupState:
        if self.group.wants(entry.subject, entry.position):
            return GroupState("done")
        return GroupState("not wanted", "no claim of the group covers its subject and position")

    def _lease(self, item: Item, holder: object) -> Delivery:
        item.deliveries += 1
        item.lease = Lease(item, holder, self._clock.monotonic() + self.group.lease)
        self._move(item, "leased")
        self._held[holder] += 1
        self._watch(item, item.lease)
        until, lease = item.lease.until, item.lease
        tried = item.deliveries, item.attempts
        dropped, returned = item.dropped, item.returned
        return Delivery(item.entry, self.group.name, *tried, until, lease, item.crashes, item.replay, dropped, returned)

    def _watch(self, item: Item, lease: Lease) -> None:
        if item.timer is not None:
            item.timer.cancel()
        item.timer = self._clock.call_later(lease.until - self._clock.monotonic(), partial(self._return, item))

    def _stop(self, item: Item) -> None:
        """End timer and lease: whoever holds the delivery can no longer settle it."""
        if item.timer is not None:
            item.timer.cancel()
        self._let_go(item)
        item.timer = item.lease = None

    def _let_go(self, item: Item) -> None:
        """It is in nobody's hands any more."""
        item.kept = False
        if item.state == "leased" and item.lease is not None:
            self._held[item.lease.holder] -= 1

    def _freed(self) -> None:
        """Something has left a reader's hands: of an ordered group others may have what waits."""
        if self.group.ordered and not self.group.paused:
            self.ready.ring()
        self._changed()

    def _return(self, item: Item) -> None:
        item.timer = None
        self._let_go(item)
        self._move(item, "waiting")
        self._offer(item)

    def _offer(self, item: Item) -> None:
        heapq.heappush(self._heap, item.entry.position)
        if not self.group.paused:
            self.ready.ring()
        self._changed()

    def _move(self, item: Item, state: State) -> None:
        self._counts[item.state] -= 1
        self._counts[state] += 1
        item.state = state


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
