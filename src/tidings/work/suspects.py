"""Messages that may have killed their process: how they are told, and how they run.

Deliveries are no attempts: a process that dies takes everything it had prefetched with it, and almost all of that is
innocent; and what is handed back in good order is no sign of anything. So a message that was handed out more often than
that and its failures explain is only a *suspect*. A suspect runs alone in its process, after the engine has noted that
it begins; a note that nobody takes back, because the process died, counts as one crash of this message and of no other.
Messages that are no suspects cost no note.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ..engine import Dead, Delivery, Failure
from ..version import __version__

UNEXPLAINED: Final = 3
"""Earlier deliveries of which nobody knows how they ended that make a message a suspect."""
CRASHES: Final = 5
"""Crashes while it ran alone after which a message is a dead letter."""


def is_suspect(delivery: Delivery) -> bool:
    """Whether the message has to run alone."""
    return delivery.crashes > 0 or delivery.unexplained >= UNEXPLAINED


def crash_loop(delivery: Delivery, handler: str) -> Dead | None:
    """Its dead letter, if it has crashed its process too often to be run once more."""
    if delivery.crashes < CRASHES:
        return None
    text = (
        f"its process died {delivery.crashes} times while this message ran alone in it: killed from outside (out of "
        "memory?) or ended by the handler (os._exit, a crash in an extension module). See the output of the workers"
    )
    return Dead(delivery, "crash_loop", Failure("ProcessDied", text, "", handler, socket.gethostname(), __version__))


class Floor:
    """Where the handlers of one process run: any number of them together, or one suspect alone.

    A suspect waits for the handlers that run, which their time limits bound; nothing new begins meanwhile.
    """

    def __init__(self) -> None:
        self._running = 0
        self._suspects = 0
        self._turn = asyncio.Lock()
        self._empty = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    async def opened(self) -> None:
        """Wait until no suspect is here."""
        await self._open.wait()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Run beside others."""
        await self.enter()
        try:
            yield
        finally:
            self.leave()

    async def enter(self) -> None:
        """`shared` in two words, for those who do it for every message; each is followed by a `leave`."""
        while self._suspects:
            await self._open.wait()
        self._running += 1

    def leave(self) -> None:
        self._running -= 1
        if not self._running and self._suspects:
            self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Run while nothing else does. Suspects take turns."""
        self._suspects += 1
        self._open.clear()
        try:
            async with self._turn:
                while self._running:
                    self._empty.clear()
                    await self._empty.wait()
                yield
        finally:
            self._suspects -= 1
            if not self._suspects:
                self._open.set()
