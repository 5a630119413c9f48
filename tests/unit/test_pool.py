"""Few tasks for many messages: what is shared between them, and what is not."""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar

import pytest

from tidings.message import current_message
from tidings.work import pool
from workbench import Bench, New, until

pytest_plugins = ("workbench",)

mark: ContextVar[int] = ContextVar("mark", default=-1)


async def test_a_quick_handler_needs_no_task_per_message(bench: Bench) -> None:
    """Messages whose handler waits for nothing share tasks, and nothing that one of them sets is seen by the next."""
    tasks: set[asyncio.Task[None] | None] = set()
    seen: list[tuple[int, int, str]] = []

    async def handle(new: New) -> None:
        tasks.add(asyncio.current_task())
        message = current_message.get()
        assert message is not None
        seen.append((new.n, mark.get(), message.id))
        mark.set(new.n)

    await bench.worker(handle)
    bench.publish(*range(500))
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert sorted(seen) == [(n, -1, str(n)) for n in range(500)]
    assert len(tasks) < 250


async def test_a_waiting_handler_lets_others_begin(bench: Bench) -> None:
    """The first of a batch that waits holds up none of the others."""
    seen: list[int] = []
    go = asyncio.Event()

    async def handle(new: New) -> None:
        if new.n == 0:
            await go.wait()
        seen.append(new.n)

    await bench.worker(handle)
    bench.publish(*range(100))
    await until(lambda: len(seen) == 99)
    go.set()
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert seen[-1] == 0


async def test_a_cancel_left_behind_hits_no_other_message(bench: Bench) -> None:
    """A handler that cancels its own task and returns has succeeded; those after it are handled as if nothing was."""
    seen: list[int] = []

    async def handle(new: New) -> None:
        if new.n % 10 == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        elif new.n % 2 == 0:
            await asyncio.sleep(0)
        seen.append(new.n)

    _, engine = await bench.worker(handle)
    bench.publish(*range(100))
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert sorted(seen) == list(range(100))
    assert len(engine.settled) == 100


async def test_a_greedy_group_lets_others_have_their_turn(bench: Bench) -> None:
    """A handler that computes and never waits does not keep leases, other groups and the engine from their turns."""
    turns = 0
    handled: list[int] = []

    async def handle(new: New) -> None:
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
        handled.append(new.n)

    async def others() -> None:
        nonlocal turns
        while len(handled) < 100:
            turns += 1
            await asyncio.sleep(0)

    await bench.worker(handle)
    bench.publish(*range(100))
    await others()
    assert turns >= 20


async def test_what_waits_for_stuck_handlers_goes_to_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was quick has taken more than can begin; when its handlers get stuck, another one gets the rest."""
    monkeypatch.setattr(pool, "_STUCK", 0.05)
    monkeypatch.setattr(pool, "_AHEAD", 0.001)
    go = asyncio.Event()
    stuck: list[int] = []
    helped: list[int] = []

    async def slow(new: New) -> None:
        if new.n >= 3000:
            stuck.append(new.n)
            await go.wait()

    async def quick(new: New) -> None:
        helped.append(new.n)

    await bench.worker(slow)
    bench.publish(*range(4000))
    await until(lambda: len(stuck) == 16)
    await bench.worker(quick)
    await until(lambda: len(helped) == 1000 - 16)
    go.set()
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert sorted(stuck + helped) == list(range(3000, 4000))


async def test_stopping_hands_back_what_has_not_begun(bench: Bench) -> None:
    """What was taken ahead goes back at once when the worker stops, and burns no attempt."""
    go = asyncio.Event()
    begun: list[int] = []
    attempts: list[int] = []

    async def slow(new: New) -> None:
        if new.n >= 2000:
            begun.append(new.n)
            await go.wait()

    async def quick(new: New) -> None:
        message = current_message.get()
        assert message is not None
        attempts.append(message.attempt)

    worker, _ = await bench.worker(slow)
    bench.publish(*range(3000))
    await until(lambda: len(begun) == 16)
    stopping = asyncio.ensure_future(worker.stop())
    await until(lambda: bench.counts[1] == 16)
    await bench.worker(quick)
    await until(lambda: len(attempts) == 1000 - 16)
    go.set()
    await stopping
    await until(lambda: bench.counts == (0, 0, 0, 0))
    assert set(attempts) == {1}
