"""From the user's database to the log: sends what committed transactions have staged.

The process that staged a message sends it right after the commit. What a crash left behind is found by any process
with a relay, leased row by row so that two relays share the work, and sent under the same id, so that sending twice
stores once.

Messages with a key leave in the order of their commits, over all processes: none is sent while an earlier one with its
key is still in the outbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from . import failpoints
from .clock import Clock
from .engine import Outgoing
from .errors import ConfigError, EngineError, InvalidMessage
from .logs import Lasting
from .message import KEY
from .publisher import Publisher
from .unit import Units

log = logging.getLogger("tidings.outbox")

_BATCH = 500
_AGAIN = 0.05
"""Seconds until a message is looked at again that waits for an earlier one with its key."""


class Relay:
    """Sends staged messages of one database."""

    def __init__(self, units: Units, publisher: Publisher, clock: Clock, *, lease: float = 30.0) -> None:
        self.units = units
        self._publisher = publisher
        self._clock = clock
        self._patience = lease / 3
        self._sweep_every = lease / 6
        self._waiting: list[Outgoing] = []
        self._unsure: dict[tuple[str, str], tuple[Outgoing, float]] = {}
        self._sending = asyncio.Lock()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._reading = Lasting(log, clock)

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
        try:
            while await self._send_waiting() and (self._waiting or self._unsure):
                pass
        finally:
            await self.end()

    async def end(self) -> None:
        """Send nothing more; idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def send_soon(self, messages: Sequence[Outgoing]) -> None:
        """These were committed just now. Returns at once."""
        self._waiting.extend(message for message in messages if KEY not in message.headers)
        self.look_soon([message for message in messages if KEY in message.headers])

    def look_soon(self, messages: Sequence[Outgoing]) -> None:
        """These belong to a transaction that has ended: those that it committed are sent, each in its turn."""
        until = self._clock.monotonic() + self._patience
        self._unsure.update({(message.subject, message.id): (message, until) for message in messages})
        self._wake.set()

    async def _send_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._send_waiting()

    async def _send_waiting(self) -> bool:
        """Whether something was there to be sent, and was."""
        async with self._sending:
            batch, self._waiting = self._waiting, []
            batch += await self._in_turn()
            if not batch:
                return False
            failpoints.here("relay.begun")
            return await self._send(batch)

    async def _in_turn(self) -> list[Outgoing]:
        """Those of the unsure ones that are to be sent now. Who waits for another process's for too long, or cannot be
        looked up, is left to a sweep."""
        unsure, self._unsure = self._unsure, {}
        if not unsure:
            return []
        try:
            turn = await self.units.committed([message for message, _ in unsure.values()])
        except Exception as error:
            self._reading.met("the outbox cannot be read at the moment, a later sweep sends: %s", error)
            return []
        now = self._clock.monotonic()
        for message in turn.behind:
            key = message.subject, message.id
            if unsure[key][1] > now:
                self._unsure.setdefault(key, unsure[key])
        if self._unsure:
            self._clock.call_later(_AGAIN, self._wake.set)
        return turn.ready

    async def _sweep_all(self) -> None:
        while True:
            try:
                leftovers = await self.units.unsent(_BATCH)
                self._reading.over("the outbox is read again")
            except Exception as error:
                self._reading.met("the outbox cannot be read at the moment: %s", error)
                leftovers = []
            if leftovers:
                failpoints.here("relay.leased")
                log.info(
                    "sending %d message(s) that a stopped process, or an outage, has left in the outbox", len(leftovers)
                )
                async with self._sending:
                    sent = await self._send(leftovers)
                if sent:
                    continue
            await self._clock.sleep(self._sweep_every)

    async def _send(self, batch: Sequence[Outgoing]) -> bool:
        """Send and mark; what fails stays in the database and is found by a later sweep."""
        for wave in waves(batch):
            if not await self._send_together(wave):
                return False
        return True

    async def _send_together(self, batch: list[Outgoing]) -> bool:
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
        failpoints.here("relay.sent")
        return await self._mark(batch)

    async def _send_singly(self, batch: list[Outgoing], error: InvalidMessage) -> bool:
        """One of them cannot be stored by this engine: it must not hold the others back."""
        if len(batch) > 1:
            return all([await self._send_together([message]) for message in batch])
        [message] = batch
        log.error("outbox: message %s on %s cannot be sent: %s", message.id, message.subject, error)
        try:
            await self.units.mark_refused(message, str(error))
        except Exception as trouble:
            log.warning("the outbox cannot be written at the moment: %s", trouble)
            return False
        return True

    async def _mark(self, batch: list[Outgoing]) -> bool:
        try:
            await self.units.mark_sent(batch)
        except Exception as error:
            log.warning(
                "sent, but not yet taken out of the outbox (it will be sent again under the same ids): %s", error
            )
            return False
        failpoints.here("relay.marked")
        return True


def waves(batch: Sequence[Outgoing]) -> list[list[Outgoing]]:
    """What may be sent together: of each key one, so that none is in the log if an earlier one was not stored."""
    found: list[list[Outgoing]] = []
    turns: Counter[str] = Counter()
    for message in batch:
        key = message.headers.get(KEY)
        turn = 0 if key is None else turns[key]
        if key is not None:
            turns[key] += 1
        if turn == len(found):
            found.append([])
        found[turn].append(message)
    return found


def relay_for(relays: Sequence[Relay], session: Any) -> Relay:
    """The relay of the database that the session belongs to."""
    for relay in relays:
        if relay.units.accepts(type(session)):
            return relay
    if len(relays) == 1:
        return relays[0]
    raise ConfigError(f"no database of this bus makes a {type(session).__name__}: give its sessions to Bus(sessions=…)")
