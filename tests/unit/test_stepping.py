"""Coroutines that are begun where they stand."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context

import pytest

from tidings.clock import ManualClock, SystemClock
from tidings.stepping import in_context, within

mark: ContextVar[str] = ContextVar("mark", default="")


class Late(Exception):
    """Over its time."""


async def test_what_does_not_wait_ends_at_once() -> None:
    """No turn of the loop, no timer; and nobody is told that it waits."""
    turns: list[None] = []
    asyncio.get_running_loop().call_soon(lambda: turns.append(None))
    clock, waits = ManualClock(), []

    async def quick() -> str:
        assert clock.next_due is None
        return "done"

    assert await within(clock, 1.0, quick(), Late) == "done"
    assert await in_context(copy_context(), quick(), lambda: waits.append(1)) == "done"
    assert (turns, waits) == ([], [])


async def test_context_variables_stay_inside() -> None:
    """What a coroutine sets is there after it has waited, and not outside, where other things may be set meanwhile."""
    waits: list[int] = []

    async def inside(go: asyncio.Event) -> str:
        mark.set(mark.get() + " inside")
        await go.wait()
        await asyncio.sleep(0)
        return mark.get()

    go = asyncio.Event()
    mark.set("outside")
    asyncio.get_running_loop().call_soon(go.set)
    assert await in_context(copy_context(), inside(go), lambda: waits.append(1)) == "outside inside"
    assert (mark.get(), waits) == ("outside", [1])


@pytest.mark.parametrize("wait", [False, True])
async def test_errors_come_out(wait: bool) -> None:
    """An exception comes out as it is, with the frames in which it was raised, before or after waiting."""

    async def fails() -> None:
        if wait:
            await asyncio.sleep(0)
        raise KeyError("mine")

    for coroutine in (
        in_context(copy_context(), fails(), lambda: None),
        within(SystemClock(), 10, fails(), Late),
    ):
        with pytest.raises(KeyError, match="mine") as caught:
            await coroutine
        assert caught.traceback[-1].name == "fails"


async def test_it_is_still_the_task_that_is_cancelled() -> None:
    """A cancel of the task arrives inside, may be cleaned up after, and comes out as a cancel."""
    cleaned: list[str] = []

    async def waits_long(name: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    for name, coroutine in (
        ("a", in_context(copy_context(), waits_long("a"), lambda: None)),
        ("b", within(SystemClock(), 1000, waits_long("b"), Late)),
    ):

        async def run(coroutine: object = coroutine) -> None:
            await coroutine  # type: ignore[misc]

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned[-1] == name


async def test_a_closed_coroutine_closes_what_it_awaits() -> None:
    """What is thrown away while it waits cleans up, as any coroutine does."""
    closed: list[str] = []

    async def inside() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            closed.append("inside")

    async def run() -> None:
        await within(SystemClock(), 1000, inside(), Late)

    coroutine = run()
    coroutine.send(None)
    coroutine.close()
    assert closed == ["inside"]


async def test_too_late_is_told_and_leaves_no_cancel_behind() -> None:
    """Over the time the coroutine is cancelled and `late` is raised; the task itself is not cancelled by that."""
    clock = ManualClock()
    task = asyncio.current_task()
    assert task is not None

    async def hangs() -> None:
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(clock.advance(5)))
        await asyncio.sleep(1000)

    with pytest.raises(Late):
        await within(clock, 5.0, hangs(), Late)
    assert task.cancelling() == 0
    assert clock.next_due is None


async def test_who_survives_its_cancel_has_succeeded() -> None:
    """A coroutine that swallows the cancel and returns is not late."""
    clock = ManualClock()
    task = asyncio.current_task()
    assert task is not None

    async def stubborn() -> str:
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(clock.advance(5)))
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            return "still done"
        return "never"

    assert await within(clock, 5.0, stubborn(), Late) == "still done"
    assert task.cancelling() == 0


async def test_a_cancel_from_elsewhere_remains_one() -> None:
    """When the worker cancels too, at the moment at which the time is over, the task is cancelled, not late."""
    clock = ManualClock()

    async def hangs() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def run() -> None:
        await within(clock, 5.0, hangs(), Late)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    advancing = asyncio.ensure_future(clock.advance(5))
    with pytest.raises(asyncio.CancelledError):
        await task
    await advancing


async def test_an_inner_time_limit_is_its_own() -> None:
    """`asyncio.timeout` inside works as in any task, and its error is not taken for ours."""

    async def inner() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(1000)

    with pytest.raises(TimeoutError):
        await within(SystemClock(), 1000, inner(), Late)
