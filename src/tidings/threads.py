"""Threads that run one call after the other, and do not hold up the end of the process."""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Thread:
    """Runs the calls given to it one after the other. A daemon: one that hangs does not hold up the process's end."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open_calls = 0
        threading.Thread(target=self._work, name="tidings-call", daemon=True).start()

    @property
    def idle(self) -> bool:
        return self._open_calls == 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in the thread, with the caller's context variables. Cancelling gives up the wait only."""
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def call() -> None:
            try:
                result = context.run(function, *args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._open_calls += 1
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(self._answered)
        self._calls.put(call)
        return await asyncio.shield(answer)

    def end(self) -> None:
        """Let it end when everything it was given is done."""
        self._calls.put(None)

    def _answered(self, answer: asyncio.Future[Any]) -> None:
        self._open_calls -= 1
        if not answer.cancelled():
            answer.exception()  # seen, even if nobody waits any more

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class Threads:
    """As many threads as there are calls at the same time; free ones are used again."""

    def __init__(self) -> None:
        self._idle: list[Thread] = []
        self._closed = False
        self._pid = os.getpid()

    def take(self) -> Thread:
        if self._pid != os.getpid():  # a fork has no threads of its parent
            self._idle.clear()
            self._pid = os.getpid()
        return self._idle.pop() if self._idle else Thread()

    def give_back(self, thread: Thread) -> None:
        """Keep it for the next one, unless a call in it does not end or there will be none."""
        if thread.idle and not self._closed:
            self._idle.append(thread)
        else:
            thread.end()

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().end()
