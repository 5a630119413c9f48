"""Lanes: which delivery of an ordered group may run next."""

from __future__ import annotations

import random
from collections import defaultdict, deque

import pytest

from tidings.engine import Delivery, Entry
from tidings.message import KEY
from tidings.order.lanes import TOGETHER, Lanes


def delivery(position: int, key: str = "a") -> Delivery:
    return Delivery(Entry(position, "events.new", 0.0, {KEY: key} if key else {}, b""), "g", 1, 0, 1e9)


def running(lanes: Lanes) -> list[int]:
    """What may run now, and counts as running from here on."""
    found = []
    while (one := lanes.next()) is not None:
        found.append(one.entry.position)
    return found


def test_one_of_each_key_at_a_time() -> None:
    """Keys go side by side, each with its oldest; without a key there is one sequence; the next follows the end."""
    lanes = Lanes()
    given = {p: delivery(p, key) for p, key in ((1, "a"), (2, "b"), (3, "a"), (4, ""), (5, ""), (6, "b"))}
    assert [lanes.arrived(each) for each in given.values()] == [None] * 6
    assert (running(lanes), lanes.busy) == ([1, 2, 4], 6)
    lanes.done(given[1])
    lanes.done(given[4])
    assert (running(lanes), lanes.busy) == ([3, 5], 4)


def test_behind_one_that_rests_all_are_set_aside() -> None:
    """While a message waits for its next try, later ones of its key go aside, there or coming; earlier ones do not."""
    lanes = Lanes()
    head, second = delivery(5), delivery(6)
    lanes.arrived(head)
    lanes.arrived(second)
    assert running(lanes) == [5]
    assert lanes.rests(head) == [second]
    assert (lanes.arrived(delivery(7)), lanes.arrived(delivery(4))) == (5, None)
    assert (lanes.busy, lanes.resting, running(lanes)) == (0, 2, [])
    lanes.parked(second)
    lanes.rested(head)
    assert running(lanes) == [4]
    assert list(lanes.releases()) == []


def test_behind_a_dead_letter_the_key_is_parked_until_it_comes_back() -> None:
    """What is set aside returns in order once its dead letter has come and gone; what comes meanwhile waits behind."""
    lanes = Lanes()
    lanes.known_dead("a", 1)
    late = delivery(4)
    lanes.known_parked("a", 3)
    lanes.known_parked("a", 2)
    assert lanes.arrived(late) == 1
    assert list(lanes.releases()) == []
    back = delivery(1)
    assert lanes.arrived(back) is None
    lanes.parked(late)
    assert (running(lanes), list(lanes.releases())) == ([1], [])
    lanes.done(back)
    assert list(lanes.releases()) == [[2, 3, 4]]
    assert lanes.arrived(delivery(5)) == 2, "in hand it could take the room of those that come"
    for position in (3, 2, 4):
        lanes.arrived(delivery(position))
    assert running(lanes) == [2]


def test_behind_one_that_rests_briefly_some_stay() -> None:
    """Behind a message that is tried again in a moment a part's worth of later ones stays in hand; the rest goes aside
    and comes back behind them."""
    lanes = Lanes()
    head = delivery(1)
    lanes.arrived(head)
    assert running(lanes) == [1]
    assert lanes.rests(head, brief=True) == []
    stay, aside = [delivery(2 + n) for n in range(TOGETHER)], delivery(2 + TOGETHER)
    assert [lanes.arrived(each) for each in stay] == [None] * TOGETHER
    assert lanes.arrived(aside) == 1
    assert (lanes.busy, lanes.resting) == (0, 1 + TOGETHER)
    lanes.parked(aside)
    lanes.rested(head)
    for each in (head, *stay):
        assert (lanes.next(), lanes.next(), list(lanes.releases())) == (each, None, [])
        lanes.done(each)
    assert (list(lanes.releases()), lanes.busy, lanes.resting) == ([[2 + TOGETHER]], 0, 0)


def test_what_is_not_stored_yet_does_not_come_back() -> None:
    """A message on its way aside is put back only after it has arrived there."""
    lanes = Lanes()
    head, second = delivery(1), delivery(2)
    lanes.arrived(head)
    lanes.arrived(second)
    running(lanes)
    assert lanes.rests(head) == [second]
    lanes.rested(head)
    running(lanes)
    lanes.done(head)
    assert list(lanes.releases()) == []
    lanes.parked(second)
    assert list(lanes.releases()) == [[2]]


def test_what_keeps_coming_does_not_hold_up_what_is_parked() -> None:
    """While later messages of the key are on their way aside, those before them come back."""
    lanes = Lanes()
    for position in (1, 2, 4):
        lanes.known_parked("a", position)
    assert lanes.arrived(delivery(3)) == 1
    assert list(lanes.releases()) == [[1, 2]]


def test_one_that_was_lost_is_waited_for() -> None:
    """Behind a message whose lease has ended nothing runs before it has come again."""
    lanes = Lanes()
    head, second = delivery(1), delivery(2)
    lanes.arrived(head)
    lanes.arrived(second)
    running(lanes)
    assert lanes.lost(head) == [second]
    assert (running(lanes), lanes.busy) == ([], 0)
    assert lanes.arrived(delivery(1)) is None
    assert running(lanes) == [1]


def test_very_many_come_back_in_parts() -> None:
    """A long tail comes back piece by piece, and each piece waits for the end of the one before."""
    lanes = Lanes()
    for position in range(1, 2 * TOGETHER + 2):
        lanes.known_parked("a", position)
    [first] = lanes.releases()
    assert first == list(range(1, TOGETHER + 1))
    for position in first:
        lanes.arrived(delivery(position))
    for position in first:
        one = lanes.next()
        assert one is not None
        assert one.entry.position == position
        lanes.done(one)
    [second] = lanes.releases()
    assert second[0] == TOGETHER + 1


@pytest.mark.parametrize("seed", range(30))
def test_every_key_ends_in_its_order(seed: int) -> None:
    """Whatever fails, dies, is lost or comes late: each key's messages end in the order of their positions."""
    model = _Model(random.Random(seed))
    model.run()
    assert model.ended == {key: sorted(places) for key, places in model.all.items()}
    assert (model.lanes.busy, model.lanes.resting, model.lanes.in_hand()) == (0, 0, [])


class _Model:
    """A group with three keys: its log, its dead letters, what is parked, what is under way."""

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self.lanes = Lanes()
        self.all: dict[str, list[int]] = defaultdict(list)
        self.ended: dict[str, list[int]] = defaultdict(list)
        self.to_come: deque[Delivery] = deque()
        for position in range(1, 61):
            key = random.choice("ab") if position % 5 else ""
            self.all[key].append(position)
            self.to_come.append(delivery(position, key))
        self.again: deque[Delivery] = deque()
        self.running: list[Delivery] = []
        self.resting: list[Delivery] = []
        self.parking: list[Delivery] = []
        self.aside: dict[int, Delivery] = {}
        self.dead: list[Delivery] = []

    def run(self) -> None:
        acts = [self.come, self.come, self.end, self.end, self.wake, self.store, self.redrive]
        for _ in range(20_000):
            self.random.choice(acts)()
            while (one := self.lanes.next()) is not None:
                self.running.append(one)
            for positions in self.lanes.releases():
                self.again.extend(self.aside.pop(position) for position in positions)
            if sum(map(len, self.ended.values())) == 60:
                return
        raise AssertionError(f"stuck: {self.running} {self.resting} {self.dead} {self.aside}")

    def come(self) -> None:
        source = self.again or self.to_come
        if source:
            one = source.popleft()
            one = delivery(one.entry.position, one.entry.headers.get(KEY, ""))
            if self.lanes.arrived(one) is not None:
                self.parking.append(one)

    def end(self) -> None:
        if not self.running:
            return
        one = self.running.pop(self.random.randrange(len(self.running)))
        match self.random.randrange(9):
            case 0:
                self.parking += self.lanes.died(one)
                self.dead.append(one)
            case 1:
                self.parking += self.lanes.rests(one)
                self.resting.append(one)
            case 2:
                self.parking += self.lanes.lost(one)
                self.again.append(one)
            case 3:
                assert self.lanes.rests(one, brief=True) == []
                self.resting.append(one)
            case _:
                self.lanes.done(one)
                self.ended[one.entry.headers.get(KEY, "")].append(one.entry.position)

    def wake(self) -> None:
        if self.resting:
            self.lanes.rested(self.resting.pop(0))

    def store(self) -> None:
        if self.parking:
            one = self.parking.pop(0)
            self.aside[one.entry.position] = one
            self.lanes.parked(one)

    def redrive(self) -> None:
        if self.dead:
            self.again.append(self.dead.pop(self.random.randrange(len(self.dead))))


def test_two_copies_of_one_message_are_no_reason_to_wait_for_it() -> None:
    """Of a message that is here twice, as after a lost acknowledgement, the second is not held up by the first: whether
    that was given up, died, or was handled."""
    for ends in (Lanes.lost, Lanes.died, Lanes.done):
        lanes = Lanes()
        first, second, later = delivery(1), delivery(1), delivery(2)
        for each in (first, later, second):
            lanes.arrived(each)
        assert lanes.next() is first
        ends(lanes, first)
        assert lanes.next() is second
        lanes.done(second)
        assert (running(lanes), lanes.busy) == ([2], 1)


def test_a_copy_of_what_was_set_aside_joins_it() -> None:
    """What comes although it is parked, or on its way there, is set aside once more, and comes back once."""
    lanes = Lanes()
    lanes.known_dead("a", 1)
    late, copy = delivery(2), delivery(2)
    assert (lanes.arrived(late), lanes.arrived(copy)) == (1, 2)
    lanes.parked(late)
    assert lanes.arrived(copy) == 2
    lanes.parked(copy)
    redriven = delivery(1)
    lanes.arrived(redriven)
    assert running(lanes) == [1]
    lanes.done(redriven)
    assert list(lanes.releases()) == [[2]]
    lanes.arrived(delivery(2))
    assert (running(lanes), list(lanes.releases()), lanes.busy) == ([2], [], 1)
