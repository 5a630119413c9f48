"""Who is the active worker of an ordered group."""

from __future__ import annotations

import asyncio

import pytest

from tidings.clock import ManualClock
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.errors import Unconfirmed
from tidings.order.election import Election, Reign, term_of

LEASE = 30.0


class Forgetful(MemoryEngine):
    """A connection that may lose the answer to a write."""

    loses = False

    async def register(self, key: str, value: bytes, revision: int) -> int:
        written = await super().register(key, value, revision)
        if self.loses:
            self.loses = False
            raise Unconfirmed("no answer")
        return written


class Place:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)

    async def candidate(self) -> tuple[Election, Forgetful]:
        engine = Forgetful(self.store)
        await engine.open()
        return Election(engine, "g", clock=self.clock, lease=LEASE), engine


@pytest.fixture
async def place() -> Place:
    return Place()


async def test_one_wins_and_the_other_waits_while_it_renews(place: Place) -> None:
    """For as long as the active one renews its term nobody else gets it, and its epoch stays."""
    (first, engine), (second, _) = await place.candidate(), await place.candidate()
    reign = await first.win()
    keeping = asyncio.create_task(first.keep(reign))
    waiting = asyncio.create_task(second.win())
    await place.clock.advance(0)
    await place.clock.advance(20 * LEASE)
    assert not keeping.done()
    assert not waiting.done()
    term = await term_of(engine, "g")
    assert term is not None
    assert (term.epoch, term.renewed > 50) == (1, True)
    keeping.cancel()
    waiting.cancel()
    await asyncio.gather(keeping, waiting, return_exceptions=True)


async def test_one_that_is_silent_for_a_lease_is_followed(place: Place) -> None:
    """The next one takes over a lease after the last sign of life, not before, in the next epoch; the first has given
    itself up by then, and its renewal fails."""
    (first, _), (second, _) = await place.candidate(), await place.candidate()
    reign = await first.win()
    waiting = asyncio.create_task(second.win())
    await place.clock.advance(0)
    await place.clock.advance(LEASE - 1)
    assert not waiting.done()
    assert place.clock.monotonic() > reign.until
    await place.clock.advance(3)
    assert (await waiting).epoch == 2
    reign.until = place.clock.monotonic() + LEASE
    keeping = asyncio.create_task(first.keep(reign))
    await place.clock.advance(0)
    await place.clock.advance(LEASE / 3 + 1)
    assert keeping.done()


async def test_one_that_resigns_is_followed_at_once(place: Place) -> None:
    """Nobody waits for a lease after a worker that has stopped in good order."""
    (first, _), (second, _) = await place.candidate(), await place.candidate()
    reign = await first.win()
    waiting = asyncio.create_task(second.win())
    await place.clock.advance(0)
    await place.clock.advance(2)
    await first.resign(reign)
    await place.clock.advance(2)
    assert (await waiting).epoch == 2


async def test_a_lost_answer_ends_no_term(place: Place) -> None:
    """Whoever does not know whether its claim or its renewal was written finds out, and goes on."""
    (first, engine), (second, _) = await place.candidate(), await place.candidate()
    engine.loses = True
    winning = asyncio.create_task(first.win())
    await place.clock.advance(0)
    await place.clock.advance(2)
    reign: Reign = await winning
    keeping = asyncio.create_task(first.keep(reign))
    waiting = asyncio.create_task(second.win())
    await place.clock.advance(0)
    for _ in range(5):
        engine.loses = True
        await place.clock.advance(LEASE / 2)
    assert not keeping.done()
    assert not waiting.done()
    keeping.cancel()
    waiting.cancel()
    await asyncio.gather(keeping, waiting, return_exceptions=True)
