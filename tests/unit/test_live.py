"""Live channels: broadcast and listen."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidings
from tidings.codec import codec_for
from tidings.engine import LISTENER_ROOM
from tidings.live.listeners import _text
from tidings.testing import TestBus


class Saved(tidings.Event, subject="events.saved"):
    n: int = 0


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_who_listens_hears() -> None:
    """Text, values and messages; broadcast says how many heard."""
    bus = tidings.Bus("todo")
    heard: list[Any] = []

    @bus.listen("prices.*")
    async def values(body: dict[str, int]) -> None:
        heard.append(body)

    @bus.listen("prices.>")
    def message(m: tidings.Message) -> None:
        heard.append((m.subject, m.data))

    async with TestBus(bus):
        assert await bus.broadcast("prices.gold", {"eur": 7}) == 2
        await until(lambda: len(heard) == 2)
        assert await bus.broadcast("nobody.here", 1) == 0
    assert {"eur": 7} in heard
    assert ("prices.gold", '{"eur":7}') in heard


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
def test_text_is_heard_as_it_was_said(said: str) -> None:
    """Quotes, backslashes and line breaks included."""
    assert _text(codec_for(Any).encode(said)) == said


@pytest.mark.parametrize(("body", "text"), [(b"ping", "ping"), (b'"half', '"half'), (b"\xff", "\ufffd"), (b"", "")])
def test_plain_words_of_other_tools_are_text(body: bytes, text: str) -> None:
    """`PUBLISH channel ping` says no JSON, and is heard."""
    assert _text(body) == text


async def test_a_failing_listener_hears_the_next() -> None:
    """Errors, exits, undecodable words and a cancel of its own are logged; what comes next is heard, in order."""
    bus, heard = tidings.Bus("todo"), []

    @bus.listen("numbers")
    async def numbers(n: int) -> None:
        if n == 1:
            raise ValueError
        if n == 2:
            raise asyncio.CancelledError
        if n == 3:
            sys.exit("enough")
        heard.append(n)

    async with TestBus(bus):
        for body in (0, 1, 2, 3, b"no json", "no number", 4, 5):
            assert await bus.broadcast("numbers", body) == 1
        await until(lambda: heard == [0, 4, 5])


async def test_a_listener_that_cancels_its_own_task_hears_the_next(caplog: pytest.LogCaptureFixture) -> None:
    """It does not fall silent for good, and the log says what happened."""
    bus, heard = tidings.Bus("todo"), []

    @bus.listen("prices")
    async def listen(n: int) -> None:
        if n == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()
        heard.append(n)

    async with TestBus(bus):
        for n in (1, 2):
            assert await bus.broadcast("prices", n) == 1
        await until(lambda: heard == [2])
    assert "was cancelled by something of its own" in caplog.text


@pytest.mark.parametrize("channel", ["events.saved", "events.*", "events.>"])
async def test_durable_subjects_are_not_listened_to(channel: str) -> None:
    """A listener there would miss events in silence; the text names `@bus.on`."""
    bus = tidings.Bus("todo")

    @bus.listen(channel)
    async def hear(text: str) -> None: ...

    with pytest.raises(tidings.ConfigError, match=r"is durable: handle it with @bus\.on"):
        async with TestBus(bus):
            pass


async def test_a_listener_returns_nothing() -> None:
    """Events it returned would be lost in silence: that is refused at the start."""
    bus = tidings.Bus("todo")

    @bus.listen("prices")
    async def hear(text: str) -> Saved:
        return Saved()

    with pytest.raises(tidings.ConfigError, match="a listener returns nothing"):
        async with TestBus(bus):
            pass


async def test_broadcast_into_the_roots_is_refused() -> None:
    """Durable subjects are published to."""
    bus = tidings.Bus("todo")
    async with TestBus(bus):
        with pytest.raises(tidings.ConfigError, match="publish to it"):
            await bus.broadcast("events.saved", 1)
        with pytest.raises(tidings.InvalidMessage):
            await bus.broadcast("prices.*", 1)
        with pytest.raises(tidings.InvalidMessage):
            await bus.broadcast("prices", float("nan"))


def test_listening_to_nothing_is_refused() -> None:
    """A channel is needed, and whole wildcards only."""
    bus = tidings.Bus("todo")
    with pytest.raises(tidings.ConfigError, match="which channels"):
        bus.listen()
    with pytest.raises(tidings.ConfigError):
        bus.listen("prices*")


async def test_a_listener_that_missed_something_is_told_in_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """`lagged=` is called, also a coroutine function; what it raises is logged, and the next signals are heard; without
    it the log tells."""
    bus = tidings.Bus("todo")
    heard: list[Any] = []
    release = asyncio.Event()

    async def lagged(what: tidings.Lagged) -> None:
        heard.append(what)
        raise LookupError("no state to fetch")

    @bus.listen("flood", lagged=lagged)
    async def told(n: int) -> None:
        await release.wait()
        heard.append(n)

    @bus.listen("flood")
    async def not_told(n: int) -> None:
        await release.wait()

    async with TestBus(bus):
        for n in range(LISTENER_ROOM + 6):  # the first is in the handler's hands as soon as it runs
            await bus.broadcast("flood", n)
            await asyncio.sleep(0)
        release.set()
        await until(lambda: heard and heard[-1] == LISTENER_ROOM + 5)
        await until(lambda: "is too slow" in caplog.text)
    assert heard[:3] == [0, tidings.Lagged(5), 6]
    assert "no state to fetch" in caplog.text
