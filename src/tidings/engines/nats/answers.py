"""Answers find their questions: each question has a reply subject of its own, whose last token is a number."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Final, TypeAlias

from .connection import Frame

OnAnswer: TypeAlias = Callable[[Frame | Exception], None]
"""Takes the answers to a question, or what happened instead."""

_FEW: Final = 64


class Answers:
    """What is expected, by number."""

    def __init__(self) -> None:
        self._expected: dict[str, tuple[str, OnAnswer]] = {}
        self._numbers = itertools.count()
        self._limits = _Limits(self._expected)

    def __len__(self) -> int:
        return len(self._expected)

    def expect(self, subject: str, arrived: OnAnswer, within: float | None = None) -> str:
        """The number for a question to `subject`, until `forget`. After `within` seconds it gets a `TimeoutError`."""
        number = str(next(self._numbers))
        self._expected[number] = (subject, arrived)
        if within is not None:
            self._limits.begin(number, within)
        return number

    def forget(self, number: str) -> None:
        """Wait for it no more; what still comes reaches nobody."""
        self._expected.pop(number, None)

    def take(self, frame: Frame) -> None:
        """An answer has come."""
        expected = self._expected.get(frame.subject.rpartition(".")[2])
        if expected is not None:
            expected[1](frame)

    def denied(self, subject: str, error: Callable[[str], Exception]) -> bool:
        """Tell all who asked there (in lower case) that they may not; whether there was anybody."""
        asked = [expected for expected in self._expected.values() if expected[0].lower() == subject]
        for where, arrived in asked:
            arrived(error(where))
        return bool(asked)

    def fail(self, error: Exception) -> None:
        """No answer comes any more to what was asked."""
        self._limits.end()
        for _, arrived in list(self._expected.values()):
            arrived(type(error)(str(error)))


class _Limits:
    """The time limits of all questions, with one timer: nearly all are answered long before."""

    def __init__(self, expected: dict[str, tuple[str, OnAnswer]]) -> None:
        self._expected = expected
        self._due: list[tuple[float, str]] = []
        """A heap, with some in it that are answered."""
        self._timer: asyncio.TimerHandle | None = None
        self._set_for = 0.0

    def begin(self, number: str, seconds: float) -> None:
        """It was asked now."""
        due, expected, loop = self._due, self._expected, asyncio.get_running_loop()
        while due and due[0][1] not in expected:
            heapq.heappop(due)
        if len(due) > 2 * len(expected) + _FEW:  # many that were answered, behind one that is not
            due[:] = sorted(one for one in due if one[1] in expected)
        at = loop.time() + seconds
        heapq.heappush(due, (at, number))
        if self._timer is None or at < self._set_for:
            self._set(at)

    def end(self) -> None:
        """Nothing is due any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._set_for = at
        self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        due, now = self._due, asyncio.get_running_loop().time()
        while due and (due[0][0] <= now or due[0][1] not in self._expected):
            expected = self._expected.get(heapq.heappop(due)[1])
            if expected is not None:
                expected[1](TimeoutError())
        if due:
            self._set(due[0][0])


def settle(future: asyncio.Future[Frame], answer: Frame | Exception) -> None:
    """Give the future its answer, the first one only."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
        future.exception()  # whoever asked may have gone
    else:
        future.set_result(answer)
