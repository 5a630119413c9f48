"""Tracebacks as text: whole for a failure that is kept, and for a log only where in the application it happened."""

from __future__ import annotations

import logging
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"
_FRAME: Final = re.compile(r'^  File "([^"]*)", line \d+.*\n(?:    .*\n)*', re.MULTILINE)
_MOST_FRAMES: Final = 8
_OURS: Final = os.path.join(Path(__file__).parents[1], "")
_LIBRARIES: Final = tuple(os.path.join(path, "") for path in (_OURS, *sysconfig.get_paths().values()))
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def place_of(error: BaseException, package: str) -> str:
    """Where it happened, in the lines of the application, which is what belongs to the package or to no library;
    empty if it was nowhere there."""
    for one in _with_causes(error):
        frames = [(f, line) for f, line in traceback.walk_tb(one.__traceback__) if _is_own(f, package)]
        if frames:
            shown = frames[:1] + frames[1:][-_MOST_FRAMES:]
            return "".join(traceback.StackSummary.extract(shown).format()).rstrip("\n")
    return ""


def without_libraries(text: str) -> str:
    """The text of a traceback without the lines of libraries and of ours, where there are others."""
    own = _FRAME.sub(lambda frame: frame[0] if _is_own_file(frame[1]) else "", text)
    return own if _FRAME.search(own) else text


def in_place(record: logging.LogRecord) -> bool:
    """A filter of a logger: what a formatter prints of an error is the record's `place`. Its `exc_info` stays whole,
    for programs that collect errors."""
    record.exc_text = getattr(record, "place", None) or record.exc_text
    return True


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_own(frame: FrameType, package: str) -> bool:
    file = frame.f_code.co_filename
    if package and str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
        return not file.startswith(_OURS)
    return _is_own_file(file)


def _is_own_file(file: str) -> bool:
    return os.path.isabs(file) and not file.startswith(_LIBRARIES) and not any(part in file for part in _INSTALLED)


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
