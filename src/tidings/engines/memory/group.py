"""One group of the memory engine: what waits for it, what is leased, what comes back later.

Its items are the messages the group has still to handle. Ready ones stand in a heap by position, so that a redelivery
goes ahead of what is newer and taking one costs O(log n) however many wait. A place in the heap is only a hint: an item
that is no longer waiting when its turn comes is passed over.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from tidings.clock import Clock, Timer
from tidings.engine import Delivery, Entry, Failure, Group, GroupState, GroupStats

from .bell import Bell

State = Literal["waiting", "leased", "delayed"]


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
        *("attempts", "crashes", "deliveries", "due", "entry", "failure", "lease", "original", "replay", "state"),
        "timer",
    )

    def __init__(self, entry: Entry, original: bytes | None, replay: str) -> None:
        self.entry = entry
        self.replay = replay
        self.original = original
        """The body as it was published, if the entry has another one by now."""
        self.state: State = "waiting"
        self.deliveries = 0
        self.attempts = 0
        self.crashes = 0
        """Beginnings without an end; the one that is under way counts."""
        self.failure: Failure | None = None
        self.lease: Lease | None = None
        """The newest lease; it stays valid after its end until somebody else takes the item."""
        self.timer: Timer | None = None
        """Ends the lease or the delay."""
        self.due = 0.0
        """Wall time of the end of the delay."""


class GroupQueue:
    """The queue of one group. Plain blocks without `await`: each method happens at once."""

    def __init__(self, group: Group, clock: Clock, changed: Callable[[], None]) -> None:
        self.group = group
        self.ready = Bell()
        self._clock = clock
        self._changed = changed
        self._items: dict[int, Item] = {}
        self._heap: list[int] = []
        self._counts: dict[State, int] = {"waiting": 0, "leased": 0, "delayed": 0}

    def __contains__(self, position: int) -> bool:
        return position in self._items

    @property
    def quiet(self) -> bool:
        """Nothing is leased, and nothing ready unless the group is paused."""
        return not self._counts["leased"] and (self.group.paused or not self._counts["waiting"])

    def add(self, entry: Entry, original: bytes | None = None, replay: str = "") -> None:
        """A new message for the group, with no attempts counted."""
        item = Item(entry, original, replay)
        self._items[entry.position] = item
        self._counts["waiting"] += 1
        self._offer(item)

    def take(self, limit: int, holder: object) -> list[Delivery]:
        """Lease up to `limit` ready items to `holder`, oldest first."""
        taken: list[Delivery] = []
        if self.group.paused:
            return taken
        while self._heap and len(taken) < limit:
            item = self._items.get(heapq.heappop(self._heap))
            if item is not None and item.state == "waiting":
                taken.append(self._lease(item, holder))
        if taken:
            self._changed()
        return taken

    def current(self, delivery: Delivery) -> Item | None:
        """The item if the delivery may still be settled: not settled before and not given to somebody else."""
        item = self._items.get(delivery.entry.position)
        return item if item is not None and item.lease is not None and item.lease is delivery.token else None

    def finish(self, item: Item) -> None:
        """The group has nothing to do with it any more."""
        self._stop(item)
        self._counts[item.state] -= 1
        del self._items[item.entry.position]
        self._changed()

    def postpone(self, item: Item, delay: float, failure: Failure | None = None) -> None:
        """Back to the group after `delay` seconds; with a failure it was an attempt."""
        self._stop(item)
        if failure is not None:
            item.attempts += 1
            item.failure = failure
        if delay <= 0:
            self._return(item)
            return
        self._move(item, "delayed")
        item.due = self._clock.time() + delay
        item.timer = self._clock.call_later(delay, partial(self._return, item))
        self._changed()

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
                self._stop(item)
                self._return(item)

    def clear(self) -> None:
        """Forget all items; who waits for one looks again and finds the group gone."""
        for item in self._items.values():
            self._stop(item)
        self._items.clear()
        self._counts = {"waiting": 0, "leased": 0, "delayed": 0}
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
        if item.state == "leased" and item.lease is not None:
            rest = item.lease.until - self._clock.monotonic()
            return GroupState("leased", f"by {item.lease.holder}, for {rest:.0f} s more unless renewed")
        at = f"not before {_stamp(item.due)}" if item.state == "delayed" else ""
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
        self._watch(item, item.lease)
        until, lease = item.lease.until, item.lease
        tried = item.deliveries, item.attempts
        return Delivery(item.entry, self.group.name, *tried, until, lease, item.crashes, item.replay)

    def _watch(self, item: Item, lease: Lease) -> None:
        if item.timer is not None:
            item.timer.cancel()
        item.timer = self._clock.call_later(lease.until - self._clock.monotonic(), partial(self._return, item))

    def _stop(self, item: Item) -> None:
        """End timer and lease: whoever holds the delivery can no longer settle it."""
        if item.timer is not None:
            item.timer.cancel()
        item.timer = item.lease = None

    def _return(self, item: Item) -> None:
        item.timer = None
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
