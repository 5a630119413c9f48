"""What a bus leaves behind when its starting or its closing fails, or is cut off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import tidings
from tidings.engines.memory import MemoryEngine


class New(tidings.Event, subject="events.new"):
    item: str = ""


class Double(tidings.Request[int], subject="shop.double"):
    number: int


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def running() -> list[str]:
    """The tasks of all buses that live now."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("tidings")]


def pulling() -> bool:
    return any(name.startswith(("tidings-pull", "tidings-order")) for name in running())


@pytest.mark.parametrize("order", [False, True])
async def test_a_close_that_is_cut_off_while_a_handler_runs_leaves_nothing_running(order: bool, tmp_path: Path) -> None:
    """Neither worker nor relay live on: they would lease what the next connection has to handle and to send."""
    database = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'db.sqlite3'}")
    bus = tidings.Bus("todo", url="memory:", sessions=async_sessionmaker(database))
    begun, ended = asyncio.Event(), []

    @bus.on(New, group="g", order=order)
    async def handle(new: New) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(new.item)

    await bus.work()
    engine = bus.engine
    await bus.publish(New("x"), key="k")
    await begun.wait()
    closing = asyncio.ensure_future(bus.close())
    await until(lambda: not pulling())
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await until(lambda: not running())
    assert ended == ["x"]
    assert bus.connected is None
    with pytest.raises(tidings.Closed):
        await engine.stats()
    await database.dispose()


async def test_a_close_that_is_cut_off_at_once_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine does not answer that nothing is to be pulled any more, and nobody waits for it: handlers, leases and
    settling end all the same."""
    bus, begun, stopping = tidings.Bus("todo", url="memory:"), asyncio.Event(), asyncio.Event()

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def no_answer(self: MemoryEngine, group: str) -> None:
        stopping.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryEngine, "stop_pulling", no_answer)
    await bus.work()
    await bus.publish(New())
    await begun.wait()
    closing = asyncio.ensure_future(bus.close())
    await stopping.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await until(lambda: not running())


async def test_who_closes_second_waits_for_the_first() -> None:
    """A signal and the end of `async with bus:` may both close it: neither returns while a handler still runs."""
    bus, begun, go, ended = tidings.Bus("todo", url="memory:"), asyncio.Event(), asyncio.Event(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        begun.set()
        await go.wait()
        ended.append(await bus.publish("events.last", {}))

    await bus.work()
    await bus.publish(New())
    await begun.wait()
    closing = [asyncio.ensure_future(bus.close()) for _ in range(2)]
    await until(lambda: not pulling())
    assert not any(one.done() for one in closing)
    go.set()
    await asyncio.gather(*closing)
    assert len(ended) == 1


@pytest.mark.parametrize("call", ["serve", "register"])
async def test_work_that_failed_can_be_called_again(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine was away for a moment, for the responders or for the schedules: nothing of the first try lives on,
    and the second handles."""
    bus, seen = tidings.Bus("todo", url="memory:"), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        seen.append(new.item)

    @bus.reply(Double)
    async def double(request: Double) -> int:
        return 2 * request.number

    @bus.every("1h", group="hourly")
    async def hourly() -> None: ...

    def away(*_: Any) -> AbstractAsyncContextManager[None]:
        raise tidings.EngineUnavailable("away")

    async with bus:
        before = running()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryEngine, call, away)
            for _ in range(2):
                with pytest.raises(tidings.EngineUnavailable):
                    await bus.work()
        assert running() == before
        with pytest.raises(tidings.NoResponder):
            await bus.request(Double(2))
        await bus.work()
        await bus.publish(New("x"))
        await until(lambda: seen == ["x"])
        assert await bus.request(Double(2)) == 4
    assert running() == []


async def test_closing_while_the_workers_start_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """`work` says that the bus was closed, instead of working on a connection that nobody closes."""
    bus, begun, go = tidings.Bus("todo", url="memory:"), asyncio.Event(), asyncio.Event()
    real = MemoryEngine.register

    @bus.every("1h", group="hourly")
    async def hourly() -> None: ...

    async def slow(self: MemoryEngine, *given: Any) -> Any:
        written = await real(self, *given)
        begun.set()
        await go.wait()
        return written

    await bus.connect()
    monkeypatch.setattr(MemoryEngine, "register", slow)
    working = asyncio.ensure_future(bus.work())
    await begun.wait()
    await bus.close()
    go.set()
    with pytest.raises(tidings.Closed):
        await working
    assert running() == []


class Slow:
    """A bus that takes until `go` to connect."""

    def __init__(self) -> None:
        self.bus = tidings.Bus("todo", url="memory:")
        self.begun: list[asyncio.AbstractEventLoop] = []
        self.go = threading.Event()
        self.bus.on_start(self._warm)

    async def _warm(self) -> None:
        self.begun.append(asyncio.get_running_loop())
        await until(self.go.is_set)


async def test_who_gives_up_waiting_ends_the_connecting_for_nobody() -> None:
    """The first caller has a time limit shorter than connecting takes: the others get what it began, and it is not
    begun anew for them."""
    slow = Slow()
    first = asyncio.ensure_future(slow.bus.publish(New("first")))
    second = asyncio.ensure_future(slow.bus.publish(New("second")))
    await until(lambda: slow.begun)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    slow.go.set()
    assert (await second).position == 1
    assert len(slow.begun) == 1
    await slow.bus.close()
    assert running() == []


async def test_connecting_goes_on_when_nobody_waits_any_more() -> None:
    """Requests that come one after the other, each with a limit that is too short, reach a connected bus in the end."""
    slow = Slow()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await slow.bus.publish(New())
    slow.go.set()
    await until(lambda: slow.bus.connected)
    assert (await slow.bus.publish(New())).position == 1
    assert len(slow.begun) == 1
    await slow.bus.close()


async def test_a_failure_that_nobody_waits_for_is_not_kept() -> None:
    """The next use begins anew, and hears of its own failure only."""
    bus, failing = tidings.Bus("todo", url="memory:"), [RuntimeError("no table"), RuntimeError("no cache")]
    go = asyncio.Event()

    @bus.on_start
    async def warm() -> None:
        await go.wait()
        if failing:
            raise failing.pop(0)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await bus.connect()
    go.set()
    await until(lambda: not running())
    with pytest.raises(RuntimeError, match="no cache"):
        await bus.connect()
    async with bus:
        assert bus.connected is not None


async def test_closing_while_the_bus_connects_gives_that_up() -> None:
    """No connection comes about behind the back of who has closed the bus; who waited for it is told."""
    slow = Slow()
    publishing = asyncio.ensure_future(slow.bus.publish(New()))
    await until(lambda: slow.begun)
    await slow.bus.close()
    with pytest.raises(tidings.Closed, match="closed while it connected"):
        await publishing
    assert slow.bus.connected is None
    assert running() == []
    slow.go.set()
    async with slow.bus:
        assert (await slow.bus.publish(New())).position == 1


@pytest.mark.parametrize("workers", [False, True])
async def test_a_lifespan_that_is_cut_off_while_it_starts_leaves_nothing_running(workers: bool) -> None:
    """Who never got in never comes to the end of `async with`: entering itself ends what it began."""
    slow = Slow()
    lifespan = slow.bus.lifespan(workers=workers)(object())
    entering = asyncio.ensure_future(lifespan.__aenter__())
    await until(lambda: slow.begun)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert slow.bus.connected is None
    assert running() == []


async def test_what_runs_before_connecting_is_told_that_it_cannot_use_the_bus() -> None:
    """It would wait for itself."""
    bus = tidings.Bus("todo", url="memory:")

    @bus.on_start
    async def early() -> None:
        await bus.publish(New())

    with pytest.raises(tidings.ConfigError, match="on_start"):
        await bus.connect()
    assert running() == []


async def test_a_thread_publishes_while_the_application_connects() -> None:
    """It waits for the application's connection and uses that one, instead of a lock of another loop."""
    slow = Slow()
    connecting = asyncio.ensure_future(slow.bus.connect())
    await until(lambda: slow.begun)
    publishing = asyncio.ensure_future(asyncio.to_thread(slow.bus.publish_sync, New(), timeout=10))
    await until(lambda: waits_in_loop(asyncio.get_running_loop()))
    slow.go.set()
    assert (await connecting).loop is asyncio.get_running_loop()
    assert (await publishing).position == 1
    assert slow.begun == [asyncio.get_running_loop()]
    await slow.bus.close()


def waits_in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a call of a thread has arrived in the loop."""
    return any(getattr(task.get_coro(), "__name__", "") == "publish" for task in asyncio.all_tasks(loop))


async def test_the_application_takes_over_what_a_thread_has_connected() -> None:
    """`publish_sync` before the application's loop uses the bus does not ruin the application: what is under way is
    stored, then the bus is the application's, for threads too."""
    slow = Slow()
    early = asyncio.ensure_future(asyncio.to_thread(slow.bus.publish_sync, New(), timeout=10))
    await until(lambda: slow.begun)
    entering = asyncio.ensure_future(slow.bus.__aenter__())
    await until(running)
    late = asyncio.ensure_future(asyncio.to_thread(slow.bus.publish_sync, New(), timeout=10))
    slow.go.set()
    await entering
    assert (await early).position == 1
    await late
    own = asyncio.get_running_loop()
    assert (await slow.bus.connect()).loop is own
    assert slow.begun[1:] == [own]
    await slow.bus.close()
    assert running() == []
    await asyncio.to_thread(slow.bus.publish_sync, New(), timeout=10)  # by the thread again
    assert slow.begun[2:] == slow.begun[:1]
    await slow.bus.close()  # in the loop that it belongs to
    assert slow.bus.connected is None
    await until(lambda: not asyncio.all_tasks(slow.begun[0]))


async def test_a_taking_over_that_is_cut_off_leaves_nothing_running() -> None:
    """The application gives up entering while the thread's call is still under way: that call is done, and then the
    thread's connection ends too, which nobody would close any more."""
    slow = Slow()
    early = asyncio.ensure_future(asyncio.to_thread(slow.bus.publish_sync, New(), timeout=10))
    await until(lambda: slow.begun)
    entering = asyncio.ensure_future(slow.bus.__aenter__())
    await until(running)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert slow.bus.connected is None
    assert running() == []
    slow.go.set()
    assert (await early).position == 1
    await until(lambda: not asyncio.all_tasks(slow.begun[0]))


async def test_closing_before_connecting_has_begun_gives_that_up_too() -> None:
    """The task that connects has not had its turn yet."""
    bus = tidings.Bus("todo", url="memory:")
    publishing = asyncio.ensure_future(bus.publish(New()))
    await asyncio.sleep(0)
    assert running() == ["tidings-connect"]
    await bus.close()
    with pytest.raises(tidings.Closed):
        await publishing
    assert running() == []
