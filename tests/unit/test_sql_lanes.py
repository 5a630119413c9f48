"""Where SQLAlchemy's calls run: cancels, threads and context."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from tidings.sql.lanes import finish
from tidings.threads import Threads

who = contextvars.ContextVar("who", default="nobody")


async def test_finish_waits_for_the_end_and_raises_the_cancel_then() -> None:
    """Work that must not be torn ends before the cancel of its caller is raised."""
    go, ended = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        ended.append(True)

    task = asyncio.create_task(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_finish_cancels_the_work_after_its_grace() -> None:
    """Work that does not end is itself cancelled, so that a cancel never waits for ever."""
    task = asyncio.create_task(finish(asyncio.Event().wait(), grace=0.01))
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_finish_passes_on_what_the_work_returns_and_raises() -> None:
    """Without a cancel it is an await like any other."""

    async def fail() -> None:
        raise LookupError("gone")

    assert await finish(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(LookupError, match="gone"):
        await finish(fail())


async def test_a_thread_sees_the_context_of_its_caller() -> None:
    """Context variables (the current message, a trace) are the caller's in the thread too."""
    threads = Threads()
    thread = threads.take()
    who.set("me")
    assert await thread.run(who.get) == "me"
    threads.give_back(thread)
    threads.close()


async def test_a_thread_is_used_again_unless_a_call_in_it_does_not_end() -> None:
    """A free thread serves the next transaction; a hanging one is left behind and ends after its call."""
    threads = Threads()
    one = threads.take()
    await one.run(int)
    threads.give_back(one)
    assert threads.take() is one

    hanging, let_go = threading.Event(), threading.Event()
    inside: list[threading.Thread] = []

    def hang() -> None:
        inside.append(threading.current_thread())
        hanging.set()
        let_go.wait()

    call = asyncio.create_task(one.run(hang))
    await asyncio.to_thread(hanging.wait)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    threads.give_back(one)
    other = threads.take()
    assert other is not one
    assert await other.run(int) == 0
    let_go.set()
    await asyncio.to_thread(inside[0].join, 5)
    assert not inside[0].is_alive()
    threads.close()
    threads.give_back(other)
    assert threads.take() is not other
