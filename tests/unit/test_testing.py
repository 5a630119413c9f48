"""`TestBus`: the application's own bus in memory."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import tidings
from tidings.testing import NotQuiet, TestBus


class New(tidings.Event, subject="events.new"):
    n: int = 0


class Saved(tidings.Event, subject="events.saved"):
    n: int = 0


async def test_settle_waits_for_the_whole_chain() -> None:
    """Handlers, follow-ups and their handlers, however slow, without moving the clock."""
    bus, seen = tidings.Bus("todo"), []

    @bus.on(New, group="one")
    async def one(new: New) -> Saved:
        for _ in range(50):
            await asyncio.sleep(0)
        return Saved(new.n)

    @bus.on(Saved, group="two")
    def two(saved: Saved) -> New | None:
        seen.append(saved.n)
        return New(saved.n + 1) if saved.n < 5 else None

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert seen == [0, 1, 2, 3, 4, 5]
        assert t.clock.monotonic() == 0


@pytest.mark.parametrize("workers", [False, True])
async def test_the_lifespan_of_the_application_may_run_inside(workers: bool) -> None:
    """An application that starts and ends in the middle neither starts the handlers twice nor ends the test's bus."""
    bus, seen = tidings.Bus("todo"), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        seen.append(new.n)

    async with TestBus(bus) as t:
        async with bus.lifespan(workers=workers)(object()):
            await bus.publish(New(1))
        async with bus:
            await bus.publish(New(2))
        await t.settle()
        assert sorted(seen) == [1, 2]
    assert bus.connected is None


async def test_settle_does_not_wait_for_the_future() -> None:
    """Retries and delayed events come when the clock is moved, and only then."""
    bus, seen = tidings.Bus("todo"), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> None:
        if m.attempt == 1:
            raise tidings.RetryLater(after=10)
        seen.append(new.n)

    async with TestBus(bus) as t:
        await bus.publish(New(1))
        await bus.publish(New(2), delay=100)
        await t.settle()
        assert seen == []
        await t.clock.advance(10)
        await t.settle()
        assert seen == [1]
        await t.clock.advance(90)
        await t.settle()
        await t.clock.advance(10)
        await t.settle()
        assert seen == [1, 2]


async def test_a_handler_that_never_ends_is_not_quiet() -> None:
    """`settle` says what still moves; leaving does not wait for the handler's grace time in real seconds."""
    bus, ended = tidings.Bus("todo"), []

    @bus.on(New, group="stuck")
    async def stuck(new: New) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(new.n)

    begin = time.monotonic()
    async with TestBus(bus) as t:
        await bus.publish(New(3))
        with pytest.raises(NotQuiet, match=r"still moving after 0\.1 s: .*'stuck'.*leased=1"):
            await t.settle(0.1)
    assert ended == [3]
    assert time.monotonic() - begin < 8


async def test_not_quiet_is_a_failed_assertion() -> None:
    """pytest shows it as a failure of the test, and `except TidingsError` as one of ours."""
    assert issubclass(NotQuiet, AssertionError)
    assert issubclass(NotQuiet, tidings.TidingsError)


async def test_the_bus_is_as_before_afterwards() -> None:
    """Clock and connection are given back, and the next TestBus begins empty."""
    bus = tidings.Bus("todo")
    clock = bus.clock
    for _ in range(2):
        async with TestBus(bus) as t:
            assert bus.clock is t.clock
            assert await t.published() == []
            await bus.publish(New())
        assert bus.clock is clock
        assert bus.connected is None


async def test_a_bus_that_cannot_start_is_given_back() -> None:
    """A mistake in a handler raises on entering, and leaves the bus without a half-made connection."""
    bus = tidings.Bus("todo")
    clock = bus.clock

    @bus.on(New, group="g")
    async def handle(new) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(tidings.ConfigError):
        async with TestBus(bus):
            pass
    assert bus.connected is None
    assert bus.clock is clock


async def test_leaving_that_is_cut_off_gives_the_bus_back() -> None:
    """A time limit around the whole test ends in the middle of leaving: nothing of the test goes on, and the
    application has its own clock and connection again."""
    bus, begun, leaving = tidings.Bus("todo"), asyncio.Event(), asyncio.Event()
    clock = bus.clock

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert leaving.is_set()

    async def test() -> None:
        async with TestBus(bus):
            await bus.publish(New())
            await begun.wait()
            leaving.set()

    testing = asyncio.create_task(test())
    await leaving.wait()
    await asyncio.sleep(0)
    testing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await testing
    assert bus.clock is clock
    assert bus.connected is None
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("tidings")] == []


async def test_an_error_in_the_test_comes_through() -> None:
    """Leaving by an exception stops everything and hides nothing."""
    bus = tidings.Bus("todo")

    async def test() -> None:
        async with TestBus(bus):
            await bus.publish(New())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await test()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("tidings")] == []


async def test_only_some_groups() -> None:
    """With `groups=` the others wait, as if their workers were not running."""
    bus, seen = tidings.Bus("todo"), []

    @bus.on(New, group="one")
    async def one(new: New) -> None:
        seen.append("one")

    @bus.on(Saved, group="two")
    async def two(saved: Saved) -> None:
        seen.append("two")

    async with TestBus(bus, groups=["two"]) as t:
        await bus.publish(Saved())
        await t.settle()
        assert seen == ["two"]
    with pytest.raises(tidings.ConfigError, match="no group 'three'"):
        async with TestBus(bus, groups=["three"]):
            pass


async def test_before_entering_it_says_so() -> None:
    """A TestBus that was not entered has no store to ask."""
    with pytest.raises(tidings.TidingsError, match="enter it first"):
        await TestBus(tidings.Bus("todo")).published()


async def test_dead_letters_and_redrive() -> None:
    """Of one group or of all."""
    bus, broken = tidings.Bus("todo"), [True]

    async def handle(new: New) -> None:
        if broken:
            raise tidings.Reject("not now")

    async def handle_too(new: New) -> None:
        await handle(new)

    bus.on(New, group="one")(handle)
    bus.on(New, group="two")(handle_too)
    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert [d.group for d in await t.dead_letters()] == ["one", "two"]
        assert [d.group for d in await t.dead_letters("two")] == ["two"]
        broken.clear()
        assert await t.redrive("one") == 1
        assert await t.redrive() == 1
        await t.settle()
        assert await t.dead_letters() == []


async def test_published_gives_typed_messages_by_filter() -> None:
    """What the bus knows comes as its class, the rest as plain values."""
    bus = tidings.Bus("todo")

    @bus.on(New, group="g")
    async def handle(new: New) -> None: ...

    async with TestBus(bus) as t:
        await bus.publish(New(1))
        await bus.publish("events.other", [1])
        found: list[Any] = [m.data for m in await t.published()]
        assert found == [New(1), [1]]
        assert [m.data for m in await t.published("events.other")] == [[1]]


async def test_another_event_loop_is_told_where_the_test_bus_belongs() -> None:
    """An application in a loop of its own, as a `TestClient` runs it, is refused with what to write instead."""
    bus = tidings.Bus("todo")
    async with TestBus(bus):
        with pytest.raises(tidings.ConfigError, match=r"enter the TestBus there, client\.portal\."):
            await asyncio.to_thread(lambda: asyncio.run(bus.publish(New())))
