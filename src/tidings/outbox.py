"""From the user's database to the log: sends what committed transactions have staged.

The process that staged a message sends it right after the commit. What a crash left behind is found by any process
with a relay, leased row by row so that two relays share the work, and sent under the same id, so that sending twice
stores once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from .clock import Clock
from .engine import Outgoing
from .errors import ConfigError, EngineError, InvalidMessage
from .publisher import Publisher
from .unit import Units

log = logging.getLogger("tidings.outbox")

_SWEEP_EVERY = 5.0
_BATCH = 500


class Relay:
    """Sends staged messages of one database."""

    def __init__(self, units: Units, publisher: Publisher, clock: Clock) -> None:
        self.units = units
        self._publisher = publisher
        self._clock = clock
        self._waiting: list[Outgoing] = []
        self._unsure: list[Outgoing] = []
        self._sending = asyncio.Lock()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def busy(self) -> bool:
        """Whether something committed here is not yet in the log."""
        return bool(self._waiting or self._unsure) or self._sending.locked()

    def start(self) -> None:
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._send_all(), name="tidings-outbox"),
                asyncio.create_task(self._sweep_all(), name="tidings-outbox-sweep"),
            ]

    async def stop(self) -> None:
        """Send what is known to be committed, then end; what cannot be sent stays in the database for any relay."""
        if not self._tasks:
            return
        while await self._send_waiting() and (self._waiting or self._unsure):
            pass
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def send_soon(self, messages: Sequence[Outgoing]) -> None:
        """These were committed just now. Returns at once."""
        self._waiting.extend(messages)
        self._wake.set()

    def look_soon(self, messages: Sequence[Outgoing]) -> None:
        """These belong to a transaction of the application that has ended: those it committed are sent."""
        self._unsure.extend(messages)
        self._wake.set()

    async def _send_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._send_waiting()

    async def _send_waiting(self) -> bool:
        async with self._sending:
            batch, self._waiting = self._waiting, []
            unsure, self._unsure = self._unsure, []
            if unsure:
                try:
                    batch += await self.units.committed(unsure)
                except Exception as error:
                    log.warning("the outbox cannot be read at the moment, a later sweep sends: %s", error)
            return await self._send(batch)

    async def _sweep_all(self) -> None:
        while True:
            try:
                leftovers = await self.units.unsent(_BATCH)
            except Exception as error:
                log.warning("the outbox cannot be read at the moment: %s", error)
                leftovers = []
            if leftovers:
                log.info("sending %d message(s) left in the outbox by a process that stopped", len(leftovers))
                async with self._sending:
                    sent = await self._send(leftovers)
                if sent:
                    continue
            await self._clock.sleep(_SWEEP_EVERY)

    async def _send(self, batch: list[Outgoing]) -> bool:
        """Send and mark; a batch that fails stays in the database and is found by the next sweep."""
        if not batch:
            return True
        try:
            await self._publisher.send(batch)
        except InvalidMessage as error:
            return await self._send_singly(batch, error)
        except EngineError as error:
            log.warning("%d message(s) stay in the outbox for now: %s", len(batch), error)
            return False
        except Exception:
            log.critical("%d message(s) stay in the outbox for now, by an error of ours", len(batch), exc_info=True)
            return False
        return await self._mark(batch)

    async def _send_singly(self, batch: list[Outgoing], error: InvalidMessage) -> bool:
        """One of them cannot be stored by this engine: it must not hold the others back."""
        sent = []
        for message in batch:
            with contextlib.suppress(EngineError):
                try:
                    await self._publisher.send([message])
                    sent.append(message)
                except InvalidMessage as refused:
                    log.error("outbox: message %s on %s cannot be sent: %s", message.id, message.subject, refused)
        return bool(sent) and await self._mark(sent)

    async def _mark(self, batch: list[Outgoing]) -> bool:
        try:
            await self.units.mark_sent(batch)
        except Exception as error:
            log.warning(
                "sent, but not yet taken out of the outbox (it will be sent again under the same ids): %s", error
            )
            return False
        return True


def relay_for(relays: Sequence[Relay], session: Any) -> Relay:
    """The relay of the database that the session belongs to."""
    for relay in relays:
        if relay.units.accepts(type(session)):
            return relay
    if len(relays) == 1:
        return relays[0]
    raise ConfigError(f"no database of this bus makes a {type(session).__name__}: give its sessions to Bus(sessions=…)")
