"""Which delivery of an ordered group may run next."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter
from typing import Final

from tidings.engine import Delivery, Entry
from tidings.message import KEY

TOGETHER: Final = 100
"""Messages of one key that are put back at a time."""
_POSITION = attrgetter("entry.position")


def key_of(entry: Entry) -> str:
    """What a message is ordered by: those without a key are one sequence."""
    return entry.headers.get(KEY, "")


class Lane:
    """The messages of one key, by position: which run, which wait here, and which are somewhere else."""

    __slots__ = ("brief", "coming", "counted", "dead", "head", "parked", "parking", "resting", "waiting")

    def __init__(self) -> None:
        self.head: Delivery | None = None
        """Runs, or rests until its next try."""
        self.resting = False
        self.brief = False
        """It rests for so short that later ones may wait here."""
        self.counted = 0
        """`still` when it was last looked at."""
        self.waiting: list[Delivery] = []
        self.dead: list[int] = []
        self.parked: list[int] = []
        self.parking: set[int] = set()
        """On their way to be set aside."""
        self.coming: set[int] = set()
        """To be handed out again."""

    @property
    def empty(self) -> bool:
        return not (self.head or self.waiting or self.dead or self.parked or self.parking or self.coming)

    @property
    def still(self) -> int:
        """Deliveries here that only time brings on: one that rests, and those that wait for it."""
        return 1 + len(self.waiting) if self.resting else 0

    @property
    def shut(self) -> bool:
        """Whether one rests, and later ones may not wait for it here."""
        return self.resting and not (self.brief and len(self.waiting) < TOGETHER)

    @property
    def blocker(self) -> int | None:
        """The oldest that is somewhere else."""
        return min([*self.dead[:1], *self.parked[:1], *self.parking, *self.coming], default=None)

    @property
    def ready(self) -> bool:
        if self.head is not None or not self.waiting:
            return False
        blocker = self.blocker
        return blocker is None or self.waiting[0].entry.position < blocker

    def behind(self, position: int) -> int | None:
        """Behind what a message has to be set aside; None if it need not."""
        if position in self.parked or position in self.parking:
            return position  # of what was set aside this is another copy, as after a lost answer: they become one
        if self.shut and self.head is not None and self.head.entry.position < position:
            return self.head.entry.position
        # Kept in hand behind one that is still to come, they could take the room that it needs.
        aside = [*self.dead[:1], *self.parked[:1], *self.parking, *self.coming]
        return min((each for each in aside if each < position), default=None)

    def released(self) -> list[int]:
        """The next of those that were set aside that may come back."""
        if self.head is not None or self.coming or not self.parked:
            return []
        if self.waiting and self.waiting[0].entry.position < self.parked[0]:
            return []
        # What is on its way aside must not be overtaken, nor may it, as it keeps coming, hold up those before it.
        stop = min([*self.dead[:1], *self.parking], default=None)
        free = len(self.parked) if stop is None else bisect_left(self.parked, stop)
        return self.parked[: min(free, TOGETHER)]

    def waits(self, position: int) -> bool:
        """Whether a copy of it waits here."""
        at = bisect_left(self.waiting, position, key=_POSITION)
        return at < len(self.waiting) and self.waiting[at].entry.position == position

    def forget(self, position: int) -> None:
        """It is not somewhere else any more."""
        self.coming.discard(position)
        self.parking.discard(position)
        for places in (self.dead, self.parked):
            if (at := bisect_left(places, position)) < len(places) and places[at] == position:
                del places[at]


class Lanes:
    """All keys of a group in one worker. Nothing here waits or talks to anybody: every method says what has happened,
    `next` and `releases` say what follows."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._ready: dict[str, None] = {}
        self._releasing: dict[str, None] = {}
        self._in_hand = 0
        self._resting = 0

    @property
    def busy(self) -> int:
        """Deliveries in hand that run, or wait for one that does."""
        return self._in_hand - self._resting

    @property
    def resting(self) -> int:
        """Deliveries in hand that wait for their next try, or for that of another."""
        return self._resting

    @property
    def awaited(self) -> frozenset[int]:
        """Positions that are to be handed out again."""
        return frozenset(position for lane in self._lanes.values() for position in lane.coming)

    def known_dead(self, key: str, position: int) -> None:
        """There is a dead letter."""
        insort(self._lane(key).dead, position)

    def known_parked(self, key: str, position: int) -> None:
        """It was set aside by a worker before this one."""
        insort(self._lane(key).parked, position)
        self._look(key)

    def arrived(self, delivery: Delivery) -> int | None:
        """It was handed out. Returns behind which position it has to be set aside; None when it stays in hand."""
        key, position = key_of(delivery.entry), delivery.entry.position
        lane = self._lane(key)
        behind = lane.behind(position)
        lane.forget(position)
        if behind is None:
            self._in_hand += 1
            insort(lane.waiting, delivery, key=_POSITION)
        else:
            lane.parking.add(position)
        self._look(key)
        return behind

    def next(self) -> Delivery | None:
        """One that may run now; it counts as running from here on."""
        for key in self._ready:
            lane = self._lanes[key]
            lane.head, lane.resting = lane.waiting.pop(0), False
            self._look(key)
            return lane.head
        return None

    def runs(self, delivery: Delivery) -> bool:
        """Whether it was given out by `next` and has not come to an end, or rests."""
        lane = self._lanes.get(key_of(delivery.entry))
        return lane is not None and lane.head is delivery

    def done(self, delivery: Delivery) -> None:
        """It has come to its end."""
        self._end(delivery)
        self._look(key_of(delivery.entry))

    def died(self, delivery: Delivery) -> list[Delivery]:
        """It is a dead letter now. Returns those in hand that have to be set aside."""
        key = key_of(delivery.entry)
        lane = self._end(delivery)
        if not lane.waits(delivery.entry.position):  # else that one says what becomes of the message
            insort(lane.dead, delivery.entry.position)
        return self._set_aside(key, lane)

    def lost(self, delivery: Delivery) -> list[Delivery]:
        """It was given up without an outcome, and will be handed out again, unless another copy is here. Returns those
        in hand that have to be set aside."""
        key = key_of(delivery.entry)
        lane = self._end(delivery)
        if not lane.waits(delivery.entry.position):
            lane.coming.add(delivery.entry.position)
        return self._set_aside(key, lane)

    def rests(self, delivery: Delivery, *, brief: bool = False) -> list[Delivery]:
        """It waits here for its next try. Returns those in hand that have to be set aside: behind a brief rest
        only very many."""
        key = key_of(delivery.entry)
        lane = self._lanes[key]
        lane.resting, lane.brief = True, brief
        return self._set_aside(key, lane)

    def waiting_for(self, delivery: Delivery) -> list[Delivery]:
        """Those in hand that run after this one, if it runs or rests."""
        lane = self._lanes.get(key_of(delivery.entry))
        return list(lane.waiting) if lane is not None and lane.head is delivery else []

    def awaits(self, delivery: Delivery) -> Delivery | None:
        """The one that runs or rests, if this one waits for it."""
        lane = self._lanes.get(key_of(delivery.entry))
        return None if lane is None or lane.head is delivery else lane.head

    def rested(self, delivery: Delivery) -> None:
        """Its time has come: it runs again."""
        lane = self._lanes[key_of(delivery.entry)]
        lane.head, lane.resting = None, False
        insort(lane.waiting, delivery, key=_POSITION)
        self._look(key_of(delivery.entry))

    def parked(self, delivery: Delivery) -> None:
        """It has been set aside, or will be handed out again."""
        key, position = key_of(delivery.entry), delivery.entry.position
        lane = self._lane(key)
        if position in lane.parking:
            lane.parking.discard(position)
            insort(lane.parked, position)
        self._look(key)

    def releases(self) -> Iterator[list[int]]:
        """Positions that were set aside and are to be put back, in this order; from here on they count as coming."""
        while self._releasing:
            key = next(iter(self._releasing))
            lane = self._lanes[key]
            positions = lane.released()
            del lane.parked[: len(positions)]
            lane.coming.update(positions)
            self._look(key)
            if positions:
                yield positions

    def in_hand(self) -> list[Delivery]:
        """All that waits or rests here and does not run."""
        found = [delivery for lane in self._lanes.values() for delivery in lane.waiting]
        return found + [lane.head for lane in self._lanes.values() if lane.head is not None and lane.resting]

    def _lane(self, key: str) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane()
        return lane

    def _end(self, delivery: Delivery) -> Lane:
        lane = self._lane(key_of(delivery.entry))
        if lane.head is delivery:
            self._in_hand -= 1
            lane.head, lane.resting = None, False
        return lane

    def _set_aside(self, key: str, lane: Lane) -> list[Delivery]:
        aside = [delivery for delivery in lane.waiting if lane.behind(delivery.entry.position) is not None]
        lane.waiting = [delivery for delivery in lane.waiting if delivery not in aside]
        lane.parking.update(delivery.entry.position for delivery in aside)
        self._in_hand -= len(aside)
        self._look(key)
        return aside

    def _look(self, key: str) -> None:
        """Find out what follows for a key after something has changed."""
        lane = self._lanes[key]
        self._resting += lane.still - lane.counted
        lane.counted = lane.still
        for chosen, is_so in ((self._ready, lane.ready), (self._releasing, bool(lane.released()))):
            if is_so:
                chosen[key] = None
            else:
                chosen.pop(key, None)
        if lane.empty:
            del self._lanes[key]
