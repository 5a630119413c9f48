"""What a bus leaves behind when its starting or its closing fails, or is cut off."""

from __future__ import annotations

import asyncio
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
