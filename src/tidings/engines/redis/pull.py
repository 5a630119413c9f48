"""What one connection pulls for one group: asking, holding, keeping leases, handing out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from ...clock import Clock
from ...engine import Delivery, Release
from ...errors import Closed, EngineError, EngineUnavailable
from .codec import PAGE, deliveries_of
from .hearing import Ear, Hearing
from .link import Link
from .namespace import Namespace
from .outcomes import told

log = logging.getLogger("tidings.engines.redis")

_LOOK_AGAIN: Final = 5.0
"""Seconds after which a waiting pull looks by itself, should no bell have rung."""


class Puller:
    """One group's deliveries on this connection.

    A question to the server runs in a task of its own: who cancels a pull leaves its deliveries to the next one. What
    was leased by a question whose answer was lost is given back as soon as the connection stands again.
    """

    def __init__(self, link: Link, hearing: Hearing, namespace: Namespace, clock: Clock, group: str) -> None:
        self._link = link
        self._hearing = hearing
        self._namespace = namespace
        self._clock = clock
        self._group = group
        self._lease = 30.0
        self._buffer: deque[Delivery] = deque()
        self._held: dict[int, Delivery] = {}
        self._changed = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._trouble: Exception | None = None
        self._looked = 0
        """Counts the answers that came."""
        self._due = True
        """There may be something at the server that was not there at the last look."""
        self._soonest = float("inf")
        """When something comes there by itself, by the loop's clock."""
        self._numbers = itertools.count(1)
        self._doubtful: set[str] = set()
        self._ears: list[Ear] = []
        self._keeper: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._stops = 0
        self._pulling = 0
        self._pulled = 0.0
        self._closed = False

    async def pull(self, limit: int, wait: float) -> list[Delivery]:
        """See `Engine.pull`."""
        self._pulling += 1
        try:
            return await self._pull(limit, wait)
        finally:
            self._pulling -= 1
            self._pulled = self._clock.monotonic()

    async def _pull(self, limit: int, wait: float) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        until, stops, looked = loop.time() + wait, self._stops, self._looked
        if self._asking is None:
            self._trouble = None  # of a question that was asked ahead, some time ago
        while self._stops == stops:
            if taken := self._take(limit):
                self._ask_ahead(limit, taken)
                return taken
            if (trouble := self._trouble) is not None:
                self._trouble = None
                if not isinstance(trouble, EngineUnavailable) or loop.time() >= until:
                    raise trouble
            answered = self._looked != looked
            if answered and loop.time() >= until:
                return []
            changed = self._changed
            await self._start()
            if self._stops != stops:
                break
            if self._asking is None and (self._due or not answered):
                self._begin(limit)
            await self._wait(changed, until)
        if self._closed:
            raise Closed("the engine was closed")
        return []

    def _begin(self, limit: int) -> None:
        self._due = False
        self._asking = asyncio.create_task(self._ask(limit), name=f"tidings pull {self._group}")

    def _ask_ahead(self, limit: int, taken: list[Delivery]) -> None:
        """Where much waits, have the next ones fetched while these are handled."""
        if len(taken) == limit > 1 and not self._buffer and self._asking is None and not self._closed:
            self._begin(limit)

    async def _wait(self, changed: asyncio.Event, until: float) -> None:
        """Until something happened here, or may have happened at the server, or the time is over."""
        try:
            async with asyncio.timeout_at(min(until, self._soonest) if self._asking is None else None):
                await changed.wait()
        except TimeoutError:
            self._due = self._due or asyncio.get_running_loop().time() >= self._soonest

    async def stop(self) -> None:
        """See `Engine.stop_pulling`."""
        self._stops += 1
        self.ring()
        async with self._starting:
            ears, self._ears = self._ears, []
            for ear in ears:
                self._hearing.leave(ear)
            keeper, self._keeper = self._keeper, None
            if keeper is not None and keeper is not asyncio.current_task():
                keeper.cancel()
            if self._asking is not None:
                await asyncio.wait([self._asking])
            await self.hand_back()

    async def hand_back(self) -> None:
        """Give back what waits here for a `pull`."""
        waiting, self._buffer = list(self._buffer), deque()
        with contextlib.suppress(EngineError):  # else they come back with the end of their lease
            await self._hand_back(waiting)

    async def close(self) -> None:
        """Stop, hand back also what was handed out and not settled, and end all waiting pulls with `Closed`."""
        self._closed = True
        await self.stop()
        now = self._clock.monotonic()
        with contextlib.suppress(EngineError):
            await self._hand_back([delivery for delivery in self._held.values() if delivery.deadline > now])
        self.abandon()

    def abandon(self) -> None:
        """Stop without a word to the server."""
        self._closed = True
        self._stops += 1
        self._held.clear()
        self._buffer.clear()
        for task in (self._keeper, self._asking):
            if task is not None:
                task.cancel()
        self.ring()

    def settled(self, delivery: Delivery) -> None:
        if self._held.get(delivery.entry.position) is delivery:
            del self._held[delivery.entry.position]

    def ring(self) -> None:
        """Something has changed: let every waiting pull look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _bell(self, _channel: str, _body: bytes) -> None:
        self._due = True
        self.ring()

    def reconnected(self) -> None:
        """Bells may have rung meanwhile."""
        self._due = True
        self.ring()

    async def _start(self) -> None:
        """Hear the bells of this group, from before the first look on."""
        if self._closed:
            raise Closed("the engine was closed")
        if self._ears:
            return
        async with self._starting:
            if not self._ears:
                tag = f"{{{self._link.namespace}}}"
                names = (f"{tag}:ready:{self._group}", f"{tag}:later")
                self._ears = [await self._hearing.listen(name, self._bell) for name in names]
                self._keeper = asyncio.create_task(self._keep(), name=f"tidings leases of {self._group}")

    async def _ask(self, limit: int) -> None:
        token = f"{self._link.holder}:{next(self._numbers)}"
        asked = self._clock.monotonic()
        try:
            await self._give_up_doubtful()
            self._doubtful.add(token)
            answer = await self._link.call("pull", self._group, limit, token, PAGE, once=True)
            self._doubtful.discard(token)
        except (EngineError, asyncio.CancelledError) as error:
            self._trouble = error if isinstance(error, EngineError) else None
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            lease, rest, lost, found, texts = answer
            self._lease = float(lease)
            soon = min(float(rest) if rest else _LOOK_AGAIN, self._lease / 3, _LOOK_AGAIN)
            self._soonest = asyncio.get_running_loop().time() + soon + 0.001
            self._looked += 1
            deliveries = deliveries_of(found, texts, self._group, token, asked + self._lease)
            self._buffer += deliveries
            if deliveries:  # the oldest first
                self._namespace.seen = max(self._namespace.seen, deliveries[-1].entry.position)
            for position in lost:
                log.error(
                    "message %s of group %s is gone from the log: somebody removed it there", position, self._group
                )
        finally:
            self._asking = None
            self.ring()

    async def _give_up_doubtful(self) -> None:
        """Have the server take back what it may have leased for questions whose answers never came."""
        for token in list(self._doubtful):
            await self._link.call("unpull", self._group, token)
            self._doubtful.discard(token)

    def _take(self, limit: int) -> list[Delivery]:
        now = self._clock.monotonic()
        taken: list[Delivery] = []
        while self._buffer and len(taken) < limit:
            delivery = self._buffer.popleft()
            if delivery.deadline > now:
                taken.append(delivery)
        self._held.update((delivery.entry.position, delivery) for delivery in taken)
        return taken

    async def _keep(self) -> None:
        """Renew the leases of what waits here for a `pull`, and forget what was held too long.

        When no pull has come for half a lease it goes back: others may be idle while this process is busy or stuck.
        """
        while True:
            await asyncio.sleep(min(self._lease / 4, 10.0))
            now = self._clock.monotonic()
            self._held = {place: held for place, held in self._held.items() if held.deadline + self._lease > now}
            if not self._pulling and now - self._pulled > self._lease / 2:
                self._link.spawn(self.stop())
                return
            if self._buffer:
                with contextlib.suppress(EngineError):
                    await extend(self._link, self._clock, list(self._buffer))

    async def _hand_back(self, deliveries: list[Delivery]) -> None:
        if deliveries and self._link.connected:
            await self._link.call("settle", *told([Release(delivery) for delivery in deliveries]), wait=2.0)


async def extend(link: Link, clock: Clock, deliveries: Sequence[Delivery]) -> None:
    """Start the leases again; lost ones are left as they are."""
    asked = clock.monotonic()
    arguments = [part for d in deliveries for part in (d.group, d.entry.position, d.token)]
    answers = await link.call("extend", *arguments) if arguments else []
    for delivery, lease in zip(deliveries, answers, strict=True):
        if lease:
            delivery.deadline = asked + float(lease)
