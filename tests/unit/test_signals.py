"""What one listener has heard and not yet taken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.engine import Backlog, Lagged, Signal


def said(number: int) -> Signal:
    return Signal("live.number", str(number).encode(), {})


def numbered(count: int) -> Iterator[Signal]:
    return (said(number) for number in range(count))


async def taken(backlog: Backlog) -> list[Signal | Lagged]:
    """All that it gives, after the listener has left."""
    backlog.end(StopAsyncIteration())
    return [news async for news in backlog]


async def test_what_is_kept_comes_in_order_and_then_the_end() -> None:
    """Who leaves gets what was heard before; the first reason for the end counts, also for whoever asks again."""
    backlog = Backlog(["live.*"])
    for signal in numbered(3):
        backlog.add(signal)
    backlog.end(ConnectionError("gone"))
    backlog.end(StopAsyncIteration())
    assert [await anext(backlog) for _ in range(3)] == list(numbered(3))
    for _ in range(2):
        with pytest.raises(ConnectionError, match="gone"):
            await anext(backlog)


async def test_a_wait_that_is_cancelled_ends_nothing() -> None:
    """Whoever gives up waiting, and asks again, gets what came in between."""
    backlog = Backlog(["live.*"])
    waiting = asyncio.ensure_future(anext(backlog))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    backlog.add(said(1))
    assert await anext(backlog) == said(1)


async def test_the_oldest_go_and_are_counted() -> None:
    """With room for two, of five the last two are there, behind the number of those that are not."""
    backlog = Backlog(["live.*"], room=2)
    for signal in numbered(5):
        backlog.add(signal)
    assert await taken(backlog) == [Lagged(3), said(3), said(4)]


async def test_a_lost_connection_is_told_in_its_place() -> None:
    """Between what was heard before and after it."""
    backlog = Backlog(["live.*"])
    for news in (said(1), Lagged(None), said(2)):
        backlog.add(news)
    assert await taken(backlog) == [said(1), Lagged(None), said(2)]


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_a_listener_that_misses_something_is_always_told(cuts: list[bool], room: int) -> None:
    """Whatever comes, lost connections (True) in between: what is given is the newest, in order, and where something is
    missing before it that is told first, without a number if a lost connection is among it."""
    heard = [Lagged(None) if cut else said(number) for number, cut in enumerate(cuts)]

    async def listened() -> list[Signal | Lagged]:
        backlog = Backlog(["live.*"], room=room)
        for news in heard:
            backlog.add(news)
        return await taken(backlog)

    gone = heard[:-room]
    told = [Lagged(None if any(isinstance(each, Lagged) for each in gone) else len(gone))] if gone else []
    assert asyncio.run(listened()) == [*told, *heard[-room:]]


def test_the_first_filter_that_matches_is_the_one_that_counts() -> None:
    """Two filters may match a channel; one that none does is not heard."""
    backlog = Backlog(["live.*.now", "live.>"])
    assert backlog.filter_of("live.a.now") == "live.*.now"
    assert backlog.filter_of("live.a.then") == "live.>"
    assert backlog.filter_of("dead.a") is None
