"""`publish_sync`: from threads, from plain programs, and after a fork."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from typing import Any

import pytest

import tidings
from tidings.engine import Outgoing, Stored
from tidings.engines.memory import MemoryEngine
from tidings.testing import TestBus


class New(tidings.Event, subject="events.new"):
    item: str = ""


def run(code: str) -> str:
    """What a Python program of its own prints; warnings are errors, and it has to end by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


async def test_a_thread_publishes_through_the_running_loop() -> None:
    """No second connection: the loop that runs the bus does the work."""
    bus = tidings.Bus("todo")
    async with TestBus(bus) as t:
        receipt = await asyncio.to_thread(bus.publish_sync, New("x"), id="one")
        again = await asyncio.to_thread(bus.publish_sync, New("x"), id="one")
        assert (receipt.id, receipt.position, again.duplicate) == ("one", 1, True)
        assert len(await t.published()) == 1


async def test_many_threads_at_once() -> None:
    """Every thread gets the receipt of its own message."""
    bus = tidings.Bus("todo")
    async with TestBus(bus) as t:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            loop = asyncio.get_running_loop()
            receipts = await asyncio.gather(
                *(loop.run_in_executor(pool, bus.publish_sync, New(str(n))) for n in range(100))
            )
        stored = {m.id: m.position for m in await t.published()}
    assert {r.id: r.position for r in receipts} == stored
    assert len(stored) == 100


async def test_in_a_running_loop_it_is_refused() -> None:
    """It would block the loop that has to do the work; the text names the way."""
    bus = tidings.Bus("todo")
    async with TestBus(bus):
        with pytest.raises(tidings.ConfigError, match=r"await bus\.publish"):
            bus.publish_sync(New())


async def test_it_raises_what_publish_raises() -> None:
    """The same checks, the same errors."""
    bus = tidings.Bus("todo")
    async with TestBus(bus):
        with pytest.raises(tidings.InvalidMessage, match="NUL"):
            await asyncio.to_thread(bus.publish_sync, New("\x00"))
        with pytest.raises(tidings.InvalidMessage, match="1 to 200"):
            await asyncio.to_thread(bus.publish_sync, New(), id="")


async def test_no_answer_in_time_names_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Unconfirmed` has the receipt to publish again with, also when the caller gave no id."""
    bus, go = tidings.Bus("todo"), asyncio.Event()
    real = MemoryEngine.publish

    async def slow(self: MemoryEngine, messages: Sequence[Outgoing]) -> list[Stored]:
        stored = await real(self, messages)
        await go.wait()
        return stored

    async with TestBus(bus) as t:
        monkeypatch.setattr(MemoryEngine, "publish", slow)
        with pytest.raises(tidings.Unconfirmed, match=r"within 0\.05 s: publish again with id=") as caught:
            await asyncio.to_thread(bus.publish_sync, New("x"), timeout=0.05)
        go.set()
        again = await asyncio.to_thread(bus.publish_sync, New("x"), id=caught.value.receipt.id)
        assert again.duplicate
        assert caught.value.receipt.subject == "events.new"
        assert len(await t.published()) == 1


async def test_a_loop_that_ends_meanwhile_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread whose loop is shut down gets `Unconfirmed` and no strange error."""
    bus = tidings.Bus("todo", url="memory:")
    begun, errors = threading.Event(), []

    async def never(self: MemoryEngine, messages: Sequence[Outgoing]) -> list[Stored]:
        begun.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(MemoryEngine, "publish", never)

    def publish() -> None:
        try:
            bus.publish_sync(New())
        except tidings.Unconfirmed as error:
            errors.append(str(error))

    async def main() -> None:
        await bus.connect()
        thread.start()
        await asyncio.to_thread(begun.wait, 10)

    thread = threading.Thread(target=publish)
    await asyncio.to_thread(asyncio.run, main())
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
    assert errors
    assert "the event loop ended" in errors[0]


def test_a_plain_program_needs_no_loop() -> None:
    """Without any event loop a thread of our own does it, and the program ends by itself."""
    printed = run("""
        import tidings
        bus = tidings.Bus("todo", url="memory:")
        print(bus.publish_sync("events.x", 1).position, bus.publish_sync("events.x", 2).position)
    """)
    assert printed == "1 2\n"


def test_after_a_loop_that_was_not_closed() -> None:
    """A bus whose loop has ended without `close` connects anew instead of waiting for the dead loop."""
    printed = run("""
        import asyncio, tidings
        bus = tidings.Bus("todo", url="memory:")
        async def main():
            await bus.publish("events.x", 1)
        asyncio.run(main())
        print(bus.publish_sync("events.x", 2, timeout=10).position)
    """)
    assert printed == "1\n"


def test_after_a_fork() -> None:
    """Parent and child publish after the fork, each on a connection of its own, while other threads hold locks."""
    printed = run("""
        import os, tidings
        bus = tidings.Bus("todo", url="memory:")
        bus.publish_sync("events.x", 1)
        locks = bus._sync._lock, bus._connections._choosing
        for lock in locks:
            lock.acquire()  # as another thread may at that moment
        child = os.fork()
        if child:
            for lock in locks:
                lock.release()
        receipt = bus.publish_sync("events.x", 2, timeout=20)
        if child == 0:
            print("child", receipt.position, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("parent", receipt.position, flush=True)
    """)
    assert printed == "child 1\nparent 2\n"


def test_a_fork_inside_a_running_loop() -> None:
    """A child forked by an async application publishes too; the parent's loop is not its own."""
    printed = run("""
        import asyncio, os, tidings
        bus = tidings.Bus("todo", url="memory:")
        async def main():
            await bus.publish("events.x", 1)
            child = os.fork()
            if child == 0:
                print("child", bus.publish_sync("events.x", 2, timeout=20).position, flush=True)
                os._exit(0)
            assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
            print("parent", (await bus.publish("events.x", 2)).position, flush=True)
            await bus.close()
        asyncio.run(main())
    """)
    assert printed == "child 1\nparent 2\n"


def test_a_bus_is_not_kept_alive_by_its_fork_hook() -> None:
    """Making many buses, as tests do, leaks none of them."""
    import gc
    import weakref

    bus: Any = tidings.Bus("todo")
    gone = weakref.ref(bus)
    del bus
    gc.collect()
    assert gone() is None
    if (child := os.fork()) == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
