"""A handler that blocks the event loop is named in the log."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from workbench import Bench, New, until

pytest_plugins = ("workbench",)

PATIENCE = 20.0


class Heard(logging.Handler):
    """Tells the thread that waits for it of the first line about a standstill."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.one = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "keeps the event loop" in record.getMessage():
            self.lines.append(record.getMessage())
            self.one.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    made, log = Heard(), logging.getLogger("tidings.worker")
    log.addHandler(made)
    yield made
    log.removeHandler(made)


async def test_an_async_handler_that_blocks_is_named_while_it_does(bench: Bench, heard: Heard) -> None:
    """The line comes while the loop stands still, names handler and place, and says what to do."""
    told: list[bool] = []

    async def handle(new: New) -> None:
        told.append(heard.one.wait(PATIENCE))  # blocks the loop: only another thread can speak now

    await bench.worker(handle)
    bench.publish(1)
    await until(lambda: told)
    assert told == [True]
    [line] = heard.lines
    assert "handle keeps the event loop from going on (" in line
    assert f"{__file__}, line {handle.__code__.co_firstlineno + 1})" in line
    assert "write it as a plain `def`" in line


async def test_one_that_awaits_or_runs_in_a_thread_is_not(bench: Bench, heard: Heard) -> None:
    """While an async handler blocks and is named, one that awaits and one in a thread that take as long are not."""
    in_thread, awaiting, over, go_on = threading.Event(), asyncio.Event(), threading.Event(), asyncio.Event()

    async def awaits(new: New) -> None:
        awaiting.set()
        await go_on.wait()

    def waits_in_a_thread(new: New) -> None:
        in_thread.set()
        over.wait(PATIENCE)

    async def blocks(new: New) -> None:
        heard.one.wait(PATIENCE)
        over.set()
        go_on.set()

    begun = (awaits, awaiting.is_set), (waits_in_a_thread, in_thread.is_set), (blocks, over.is_set)
    for number, (function, began) in enumerate(begun):
        await bench.worker(function, concurrency=1)
        bench.publish(number)
        await until(began)
    [line] = heard.lines
    assert "blocks keeps the event loop" in line
