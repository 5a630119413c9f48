"""Everything at once, with a book kept beside it."""

from __future__ import annotations

import random
from collections import Counter

from tidings.engine import Dead, Delivery, Done, Engine, Release, RetryAfter

from .case import case
from .steps import FAILURE, glance, group, nothing, publish
from .world import World

SEED = 20261122
MESSAGES = 300
READERS = 4


class Book:
    """What the case itself knows: the truth that the engine has to agree with."""

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.dead: set[int] = set()
        self.attempts: Counter[int] = Counter()

    def enter(self, delivery: Delivery) -> None:
        """A delivery arrived: it must not be settled for good, and its attempts must be those made."""
        place = delivery.entry.position
        assert place not in self.done, f"{place} came back after it was done"
        assert place not in self.dead, f"{place} came back after it was dead"
        assert delivery.attempts == self.attempts[place], f"{place}: attempts"


@case("seam")
async def ledger(world: World) -> None:
    """Whatever readers do and however often they crash, each message ends done or dead exactly once, and counts and
    dead letters agree with that."""
    chance = random.Random(SEED)  # noqa: S311
    publisher = await world.engine()
    await publisher.declare([group(world)])
    stored = await publish(publisher, *[str(n) for n in range(MESSAGES)])
    everything = {receipt.position for receipt in stored}
    readers = [await world.engine() for _ in range(READERS)]
    book = Book()

    while book.done | book.dead != everything:
        place = chance.randrange(READERS)
        deliveries = await glance(world, readers[place], "g", chance.randint(1, 12))
        for delivery in deliveries:
            book.enter(delivery)
            await _act(world, book, readers[place], delivery, chance)
        if chance.random() < 0.05:
            await world.crash(readers[place])
            readers[place] = await world.engine()
        if not deliveries:
            await world.wait(world.lease / 3)

    await world.wait(1.5 * world.lease)
    await nothing(world, readers[0], "g")
    letters = await publisher.dead_letters("g", limit=MESSAGES)
    assert [letter.entry.position for letter in letters] == sorted(book.dead)
    assert {x.entry.position: x.attempts for x in letters} == {p: book.attempts[p] + 1 for p in book.dead}
    assert not book.done & book.dead
    stats = (await publisher.stats()).groups["g"]
    assert (stats.waiting, stats.leased, stats.delayed, stats.dead) == (0, 0, 0, len(book.dead))


async def _act(world: World, book: Book, engine: Engine, delivery: Delivery, chance: random.Random) -> None:
    place, throw = delivery.entry.position, chance.random()
    if throw < 0.1:
        return  # forgotten: its lease ends
    if throw < 0.2:
        await engine.extend([delivery])
    if throw < 0.55:
        book.done.add(place)
        await engine.settle([Done(delivery)])
    elif throw < 0.7:
        book.attempts[place] += 1
        await engine.settle([RetryAfter(delivery, chance.choice([0.0, world.lease / 2]), FAILURE)])
    elif throw < 0.85:
        await engine.settle([Release(delivery, chance.choice([0.0, world.lease / 3]))])
    else:
        book.dead.add(place)
        await engine.settle([Dead(delivery, "handler_error", FAILURE)])
