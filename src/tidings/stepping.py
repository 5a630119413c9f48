"""Coroutines that are begun where they stand.

Most handlers of small messages never wait for anything. Such a coroutine comes to its end in its first step, without a
task, a timer or a turn of the event loop; what waiting costs is paid by those that wait.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar

from .clock import Clock

T = TypeVar("T")


@types.coroutine
def in_context(
    context: Context, coroutine: Coroutine[Any, Any, T], waits: Callable[[], object]
) -> Generator[Any, Any, T]:
    """Await the coroutine in this task, with context variables of its own; `waits` is called if it does not come to
    its end at once."""
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    waits()
    return (yield from _rest(coroutine, awaited, context.run))


@types.coroutine
def within(
    clock: Clock, seconds: float, coroutine: Coroutine[Any, Any, T], late: Callable[[], Exception]
) -> Generator[Any, Any, T]:
    """Await the coroutine; one that still waits after the time is cancelled, and `late()` raised in its stead.

    As with `asyncio.timeout`, one that catches its cancellation and returns has succeeded, and a cancel from elsewhere
    at the same time remains one.
    """
    began = clock.monotonic()
    try:
        awaited = coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    task = asyncio.current_task()
    assert task is not None
    limit = _Limit(task)
    timer = clock.call_later(seconds - (clock.monotonic() - began), limit.reached)
    try:
        return (yield from _rest(coroutine, awaited, _call))
    except asyncio.CancelledError as where:
        if limit.is_the_cause():
            raise late() from where
        raise
    finally:
        timer.cancel()
        limit.left()


def _rest(coroutine: Coroutine[Any, Any, T], awaited: Any, call: Callable[..., Any]) -> Generator[Any, Any, T]:
    """What a coroutine does after its first step, which waits for something."""
    while True:
        step: Callable[..., Any] = coroutine.send
        argument: Any = None
        try:
            argument = yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # a cancel, above all
            step, argument = coroutine.throw, error
        try:
            awaited = call(step, argument)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _call(step: Callable[..., Any], argument: Any) -> Any:
    return step(argument)


class _Limit:
    """A cancel that is told from those of others."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._before = task.cancelling()
        self._open = False
        """It has cancelled the task, and not taken that back."""

    def reached(self) -> None:
        self._open = True
        self._task.cancel()

    def is_the_cause(self) -> bool:
        """Whether a `CancelledError` that comes out now is nobody else's."""
        return self._open and self.left() <= self._before

    def left(self) -> int:
        """Take the cancel back; returns how many there are of others."""
        if not self._open:
            return self._task.cancelling()
        self._open = False
        return self._task.uncancel()
