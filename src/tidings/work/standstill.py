"""Tells when an async handler keeps the event loop from going on: a blocking call where something is awaited elsewhere.

A thread asks the loop for a sign of life once a second. When none comes it looks where the loop's thread is: a handler
that is found in the same call a second later is named in the log, once. A message costs nothing by this.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from types import CodeType, FrameType
from typing import Final

from .handling import Handling

log = logging.getLogger("tidings.worker")

_EVERY: Final = 1.0
"""Seconds between two questions."""
_AT_ONCE: Final = 0.25
"""Seconds in which a loop that goes on answers."""
_LONG: Final = 1.0
"""Seconds for which a handler is then found at the same place before it is told."""


class Standstill:
    """Watches the event loop in which it is started, until `end`."""

    def __init__(self, handlings: Iterable[Handling]) -> None:
        self._names: dict[CodeType, str] = {}
        for handling in handlings:
            code = getattr(inspect.unwrap(handling.handler.function), "__code__", None)
            if handling.plan.is_async and code is not None:
                self._names[code] = handling.handler.name
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin, in a thread that keeps no program from ending."""
        if self._names:
            of = asyncio.get_running_loop(), threading.get_ident()
            threading.Thread(target=self._watch, args=of, name="tidings-standstill", daemon=True).start()

    def end(self) -> None:
        """End soon; nothing is told any more."""
        self._ended.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        with suppress(RuntimeError):  # the loop was closed
            while self._names and not self._ended.wait(_EVERY):
                answered = threading.Event()
                loop.call_soon_threadsafe(answered.set)
                if not answered.wait(_AT_ONCE):
                    self._look(thread, answered)

    def _look(self, thread: int, answered: threading.Event) -> None:
        found = self._handler_in(thread)
        # Not the first one that is met: of many quick ones in a row somebody is always running.
        if found is None or answered.wait(_LONG) or self._handler_in(thread) is not found or self._ended.is_set():
            return
        name = self._names.pop(found.f_code)
        log.warning(
            "%s keeps the event loop from going on (%s, line %d): for more than %.0f s no other handler has run in "
            "this process, no lease was renewed. Await there, or write it as a plain `def`, which runs in a thread",
            name,
            found.f_code.co_filename,
            found.f_lineno,
            _LONG,
        )

    def _handler_in(self, thread: int) -> FrameType | None:
        """The handler that the thread is in."""
        frame = sys._current_frames().get(thread)
        while frame is not None and frame.f_code not in self._names:
            frame = frame.f_back
        return frame
