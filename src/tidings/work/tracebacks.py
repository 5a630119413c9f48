"""The text of a traceback, for a failure that is kept: as Python prints it, without the marks below the lines."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Final

_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


def text_of(error: BaseException) -> str:
    """The error with those it came from. Python's own text has marks below each line, for which it parses the line
    anew every time: that is most of what a failure costs."""
    try:
        return "".join(part for one in reversed(list(_chain(error))) for part in one)
    except Exception:
        # Of an error whose own methods fail; Python's text survives that.
        return "".join(traceback.format_exception(error))


def _chain(error: BaseException | None) -> Iterator[list[str]]:
    """The latest first; each but the first ends with what it led to."""
    seen: set[int] = set()
    link = ""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, BaseExceptionGroup):
            yield [*traceback.format_exception(error), link]
            return
        frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__))
        lines = ["Traceback (most recent call last):\n", *frames.format()] if frames else []
        yield [*lines, *traceback.format_exception_only(error), link]
        if error.__cause__ is not None:
            error, link = error.__cause__, _CAUSE
        elif error.__suppress_context__:
            error = None
        else:
            error, link = error.__context__, _CONTEXT
