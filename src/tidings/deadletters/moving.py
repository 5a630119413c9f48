"""Putting back or dropping many dead letters.

There is nothing to resume and nothing to remember: what was moved is gone from the dead letters in the same step, so
whoever is killed half-way and starts again finds the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import Final

from ..clock import Clock
from ..engine import DeadLetter

_BATCH: Final = 100
_TURNS: Final = 10
"""Batches in a second, at least, when there is a rate."""
_CATCH_UP: Final = 1.0


async def move(
    act: Callable[[Sequence[DeadLetter]], Awaitable[int]],
    pages: AsyncIterable[Sequence[DeadLetter]],
    clock: Clock,
    *,
    rate: float | None = None,
    told: Callable[[int, int], None] = lambda looked, moved: None,
) -> int:
    """`engine.redrive` or `engine.discard` many, a batch at a time; returns how many were still there.

    `rate` is how many in a second, spread over it; what a slow engine falls behind by more than a second is not made up
    for. `told` is called with the numbers looked at and moved so far. An error, a cancel or a kill leaves the rest as
    they are; of a batch without an answer it is not known, and the next run finds out.
    """
    due, looked, moved = clock.monotonic(), 0, 0
    size = max(1, min(_BATCH, int(rate / _TURNS))) if rate else _BATCH
    async for page in pages:
        for start in range(0, len(page), size):
            batch = page[start : start + size]
            if rate:
                await clock.sleep(max(0.0, due - clock.monotonic()))
                due = max(due, clock.monotonic() - _CATCH_UP) + len(batch) / rate
            moved += await act(batch)
            looked += len(batch)
            told(looked, moved)
    return moved
