"""The bus itself: connecting, closing, and what happens in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

import tidings
from tidings.testing import TestBus


class New(tidings.Event, subject="events.new"):
    item: str = ""


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_the_first_use_connects_and_close_ends_it() -> None:
    """Making a bus connects to nothing; many first uses at once make one connection."""
    bus = tidings.Bus("todo", url="memory:")
    receipts = await asyncio.gather(*(bus.publish(New()) for _ in range(10)))
    assert sorted(r.position for r in receipts) == list(range(1, 11))
    assert bus.connected is not None
    await bus.close()
    await bus.close()
    assert bus.connected is None


async def test_a_bus_can_be_used_again() -> None:
    """After `close` the next use connects anew."""
    bus = tidings.Bus("todo", url="memory:")
    for _ in range(2):
        async with bus:
            assert (await bus.publish(New())).position == 1


def test_a_bus_serves_one_loop_after_the_other() -> None:
    """`asyncio.run` twice, as scripts and tests do."""
    bus = tidings.Bus("todo", url="memory:")

    async def once() -> int:
        async with bus:
            return (await bus.publish(New())).position

    assert [asyncio.run(once()), asyncio.run(once())] == [1, 1]


def test_a_loop_that_ended_without_closing_the_bus_is_told() -> None:
    """`asyncio.run(bus.publish(…))` twice: the second one says what to write."""
    bus = tidings.Bus("todo", url="memory:")
    asyncio.run(bus.publish(New()))
    with pytest.raises(tidings.ConfigError, match=r"`async with bus:` inside each asyncio\.run"):
        asyncio.run(bus.publish(New()))


async def test_a_handler_that_publishes_while_the_bus_closes_is_heard() -> None:
    """Draining lets a running handler finish, publishing included: on the same connection, not on a new one."""
    bus, begun, go, receipts = tidings.Bus("todo", url="memory:"), asyncio.Event(), asyncio.Event(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        if new.item == "first":
            begun.set()
            await go.wait()
            receipts.append(await bus.publish(New("last words")))

    await bus.work()
    engine = bus.engine
    await bus.publish(New("first"))
    await begun.wait()
    closing = asyncio.ensure_future(bus.close())
    await asyncio.sleep(0)
    go.set()
    await closing
    assert [r.position for r in receipts] == [2]
    assert bus.connected is None
    with pytest.raises(tidings.Closed):
        await engine.stats()


async def test_the_lifespan_connects_and_works() -> None:
    """As an attribute it connects; called with `workers=True` it also handles."""
    bus, seen = tidings.Bus("todo", url="memory:"), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        seen.append(new.item)

    async with bus.lifespan(object()):
        assert bus.connected is not None
        assert bus.connected.worker is None
    async with bus.lifespan(workers=True)(object()):
        await bus.publish(New("x"))
        await until(lambda: seen == ["x"])
    assert bus.connected is None


async def test_working_twice_or_for_nobody_is_refused() -> None:
    """The workers run once, and unknown groups are answered with the known ones."""
    bus = tidings.Bus("todo", url="memory:")

    @bus.on(New, group="g")
    async def handle(new: New) -> None: ...

    async with bus:
        with pytest.raises(tidings.ConfigError, match="no group 'x'; it has: g"):
            await bus.work(["x"])
        await bus.work()
        with pytest.raises(tidings.ConfigError, match="already run"):
            await bus.work()


async def test_a_handler_that_cannot_work_keeps_the_bus_from_connecting() -> None:
    """Every start says so, also of a process that only publishes; nothing stays half open."""
    bus = tidings.Bus("todo", url="memory:")

    @bus.on(New, group="g")
    async def handle(new) -> None: ...  # type: ignore[no-untyped-def]

    for _ in range(2):
        with pytest.raises(tidings.ConfigError, match="needs an annotation"):
            await bus.publish(New())
    assert bus.connected is None


async def test_a_database_that_cannot_work_leaves_nothing_running(tmp_path: Path) -> None:
    """The first of two databases is fine, the second is not: the bus does not connect, and no task of it is left."""
    first = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'first.sqlite3'}")
    second = sessionmaker(create_engine("sqlite://"))
    bus = tidings.Bus("todo", url="memory:", sessions=async_sessionmaker(first), sync_sessions=second)
    with pytest.raises(tidings.ConfigError, match="in memory"):
        await bus.connect()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("tidings")] == []
    await first.dispose()


async def test_on_start_runs_before_the_first_message(tmp_path: Path) -> None:
    """What it raises keeps the bus from starting."""
    bus, said = tidings.Bus("todo", url="memory:"), []

    @bus.on_start
    async def prepare() -> None:
        said.append("start")
        if len(said) == 1:
            raise RuntimeError("no table")

    with pytest.raises(RuntimeError, match="no table"):
        await bus.connect()
    assert bus.connected is None
    async with bus:
        assert said == ["start", "start"]


async def test_explicit_settings_and_arguments_add_up() -> None:
    """`url=` beside `settings=` is not forgotten, and a command line's options do not drop the settings."""
    settings = tidings.Settings(lease=3, url="embedded:")
    bus = tidings.Bus("todo", url="memory:", settings=settings)
    assert (bus.settings.url, bus.settings.lease) == ("memory:", 3)
    bus.configure(log_level="debug", namespace=None)
    assert (bus.settings.url, bus.settings.lease, bus.settings.log_level) == ("memory:", 3, "debug")


def test_an_unknown_engine_is_named_without_its_password() -> None:
    """The text says which URLs there are and shows no secret."""
    bus = tidings.Bus("todo", url="kafka://user:s3cret@host/x")
    with pytest.raises(tidings.ConfigError, match="nats://") as caught:
        asyncio.run(bus.connect())
    assert "s3cret" not in str(caught.value)


async def test_the_repr_is_short() -> None:
    """A bus in a log line shows its name and nothing secret."""
    assert repr(tidings.Bus("todo", url="nats://a:s3cret@h")) == "<Bus 'todo'>"


async def test_roots_decide_what_is_durable() -> None:
    """With other roots other subjects are published to."""
    bus = tidings.Bus("todo", roots=("audit.>",))
    async with TestBus(bus) as t:
        await bus.publish("audit.login", {"user": 1})
        assert len(await t.published()) == 1
        with pytest.raises(tidings.InvalidMessage, match=r"outside the durable subjects audit\.>"):
            await bus.publish(New())
    with pytest.raises(tidings.ConfigError):
        tidings.Bus("todo", roots=("audit*",))


@pytest.mark.parametrize("handles", [True, False])
async def test_workers_without_handlers_are_told(handles: bool, caplog: pytest.LogCaptureFixture) -> None:
    """`lifespan(workers=True)` of a bus whose handlers nobody imported works for nothing, and says so."""
    bus = tidings.Bus("todo", url="memory:")
    if handles:

        @bus.on(New, group="g")
        async def handle(new: New) -> None: ...

    async with bus.lifespan(workers=True)(object()):
        pass
    assert ("import the modules with @bus.on" in caplog.text) is not handles
