"""Everything at once, with a book kept beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from tidings.engine import Dead, Delivery, Done, Engine, Outcome, Release, RetryAfter
from tidings.errors import EngineUnavailable

from .case import case
from .steps import FAILURE, glance, group, nothing, publish
from .world import Link, WiredWorld, World

SEED = int(os.environ.get("TIDINGS_CONFORMANCE_SEED", "20261122"))
MESSAGES = 300
READERS = 4
ELECTION = 10.0
"""Seconds in which a cluster has no leader that could hear what becomes of a message."""


class Book:
    """What the case itself knows: the truth that the engine has to agree with."""

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.dead: set[int] = set()
        self.attempts: Counter[int] = Counter()
        self.unsure: set[int] = set()
        """Those whose last word may not have counted: it was said too late, or just before the server was killed."""
        self.doubted: set[int] = set()
        """Those that were ever unsure: their attempts are not known to the last one."""
        self.forgetful_until = -1.0
        """Until then a message may be in two hands: a server that was killed forgets whom it had just given what."""

    def doubt(self, *places: int) -> None:
        self.unsure.update(places)
        self.doubted.update(places)

    def enter(self, delivery: Delivery, now: float) -> None:
        """A delivery arrived: it must not be settled for good, and its attempts must be those made."""
        place = delivery.entry.position
        if place in self.unsure or now < self.forgetful_until:
            self.unsure.discard(place)
            self.doubted.add(place)
            self.attempts[place] = delivery.attempts
            return
        assert place not in self.done, f"{place} came back after it was done"
        assert place not in self.dead, f"{place} came back after it was dead"
        assert delivery.attempts == self.attempts[place], f"{place}: attempts"


class Player:
    """One reader that does whatever chance tells it."""

    def __init__(self, world: World, book: Book, chance: random.Random) -> None:
        self._world = world
        self._book = book
        self._chance = chance

    async def play(self, engine: Engine) -> bool:
        """Pull some and do something with each; whether there were any."""
        try:
            deliveries = await glance(self._world, engine, "g", self._chance.randint(1, 12))
        except EngineUnavailable:
            return False
        for delivery in deliveries:
            self._book.enter(delivery, self._world.clock.monotonic())
            await self._act(engine, delivery)
        return bool(deliveries)

    async def _act(self, engine: Engine, delivery: Delivery) -> None:
        place, throw, pick = delivery.entry.position, self._chance.random(), self._chance.choice
        if place in self._book.dead:  # what was said stands: say the same again
            await self._say(engine, Dead(delivery, "handler_error", FAILURE))
            return
        if place in self._book.done:
            await self._say(engine, Done(delivery))
            return
        if throw < 0.1:
            return  # forgotten: its lease ends
        if throw < 0.2:
            with contextlib.suppress(EngineUnavailable):
                await engine.extend([delivery])
        if throw < 0.55:
            self._book.done.add(place)
            await self._say(engine, Done(delivery))
        elif throw < 0.7:
            await self._say(engine, RetryAfter(delivery, pick([0.0, self._world.lease / 2]), FAILURE))
            self._book.attempts[place] += 1
        elif throw < 0.85:
            await self._say(engine, Release(delivery, pick([0.0, self._world.lease / 3])))
        else:
            self._book.dead.add(place)
            await self._say(engine, Dead(delivery, "handler_error", FAILURE))

    async def _say(self, engine: Engine, outcome: Outcome) -> None:
        try:
            await engine.settle([outcome])
        except EngineUnavailable:
            self._book.doubt(outcome.delivery.entry.position)
        if self._world.clock.monotonic() >= outcome.delivery.deadline:
            self._book.doubt(outcome.delivery.entry.position)


@case("seam")
async def ledger(world: World) -> None:
    """Whatever readers do and however often they crash, each message ends done or dead exactly once, and counts and
    dead letters agree with that."""
    chance, book = _begun(), Book()
    readers = [await world.engine() for _ in range(READERS)]

    async def disturb(place: int) -> None:
        if chance.random() < 0.05:
            await world.crash(readers[place])
            readers[place] = await world.engine()

    await _play(world, book, chance, readers, disturb, world.lease)


@case("seam", wired=True)
async def ledger_with_faults(world: WiredWorld) -> None:
    """The same while wires break, stay cut for a while, and the server is killed and started again."""
    chance, book = _begun(), Book()
    linked: list[tuple[Engine, Link]] = [await world.linked() for _ in range(READERS)]
    readers = [engine for engine, _ in linked]
    due = MESSAGES // 3
    # What a wire holds back for a while arrives with part of its lease gone, and nobody here can see how much: a cut
    # has to be shorter than the sixth of the lease in which nothing is settled.
    lease = 3 * world.lease

    async def disturb(place: int) -> None:
        nonlocal due
        link = linked[place][1]
        if (throw := chance.random()) < 0.04:
            link.drop()
        elif throw < 0.08:
            link.cut()
            asyncio.get_running_loop().call_later(world.lease / 4, link.mend)
        if len(book.done | book.dead) >= due:
            due = MESSAGES + 1
            await world.fail_over()
            book.doubt(*book.done, *book.dead)  # the last fraction of a second of them may be repeated
            book.forgetful_until = world.clock.monotonic() + ELECTION + 2 * lease

    await _play(world, book, chance, readers, disturb, lease)


def _begun() -> random.Random:
    print(f"TIDINGS_CONFORMANCE_SEED={SEED}")
    return random.Random(SEED)  # noqa: S311


async def _play(
    world: World,
    book: Book,
    chance: random.Random,
    readers: list[Engine],
    disturb: Callable[[int], Awaitable[None]],
    lease: float,
) -> None:
    keeper = await world.engine()
    await keeper.declare([msgspec.structs.replace(group(world), lease=lease)])
    stored = await publish(keeper, *[str(n) for n in range(MESSAGES)])
    everything = {receipt.position for receipt in stored}
    player = Player(world, book, chance)
    quiet = 0
    while quiet < 2 * READERS:
        place = chance.randrange(READERS)
        if await player.play(readers[place]):
            quiet = 0
        elif book.done | book.dead == everything:
            quiet += 1  # what is unsure has its time to come again
            place = quiet % READERS
            await world.wait(lease / READERS)
        else:
            await world.wait(lease / 4)
        await disturb(place)
    await _check(world, book, readers, keeper)


async def _check(world: World, book: Book, readers: list[Engine], keeper: Engine) -> None:
    """The engine's own count agrees with the book."""
    for reader in (*readers, keeper):
        await reader.stats()  # its wire may have been cut a moment ago: this waits until it is mended
        await nothing(world, reader, "g")
    letters = await keeper.dead_letters("g", limit=MESSAGES)
    assert [letter.entry.position for letter in letters] == sorted(book.dead)
    sure = book.dead - book.doubted
    counted = {x.entry.position: x.attempts for x in letters if x.entry.position in sure}
    assert counted == {place: book.attempts[place] + 1 for place in sure}
    assert not book.done & book.dead
    stats = (await keeper.stats()).groups["g"]
    assert (stats.waiting, stats.leased, stats.delayed, stats.dead) == (0, 0, 0, len(book.dead))
