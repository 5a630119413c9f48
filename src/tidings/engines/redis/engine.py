"""The Redis engine: one connection to one namespace on a Redis or Valkey server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from ...clock import Clock, SystemClock
from ...engine import (
    DeadLetter,
    Delivery,
    Entry,
    Group,
    GroupState,
    Headers,
    Lagged,
    Outcome,
    Outgoing,
    Record,
    Release,
    Reply,
    Responder,
    RetryAfter,
    Signal,
    Space,
    Stats,
    Stored,
)
from ...errors import Closed
from .address import Address
from .codec import MAX_MESSAGE
from .deadletters import Graveyard
from .groups import Groups
from .hearing import Hearing
from .link import Link
from .live import Channels
from .namespace import Mode, Namespace
from .publish import Publisher
from .pull import Puller
from .read import Reader
from .records import Records
from .requests import Requests
from .settle import Settler
from .space import Gauge

_HANDING_BACK: Final = 3.0
"""Seconds that `close` gives the server to take back what was pulled."""


class RedisEngine:
    """`tidings.engine.Engine` on Redis or Valkey. `limit` is the number of bytes that the namespace may store; -1 for
    what the server's memory allows. `mode` says what opening may change: see `namespace.Mode`."""

    max_message: Final = MAX_MESSAGE

    def __init__(
        self,
        address: Address,
        *,
        namespace: str = "tidings",
        roots: Sequence[str] = ("events.>",),
        clock: Clock | None = None,
        timeout: float = 10.0,
        limit: int = -1,
        mode: Mode = "extend",
    ) -> None:
        self._clock = clock or SystemClock()
        self._link = Link(address, namespace, timeout)
        self._namespace = Namespace(self._link, roots, mode)
        self._hearing = Hearing(self._link)
        self._gauge = Gauge(self._link, limit)
        self._publisher = Publisher(self._link, self._namespace, self._gauge)
        self._groups = Groups(self._link, self._clock)
        self._settler = Settler(self._link, self._clock, self._settled)
        self._reader = Reader(self._link, self._hearing)
        self._graveyard = Graveyard(self._link)
        self._records = Records(self._link)
        self._channels = Channels(self._link, self._hearing)
        self._requests = Requests(self._link, self._hearing)
        self._pullers: dict[str, Puller] = {}
        self._opening = asyncio.Lock()
        self._open = False
        self._closed = False

    @property
    def description(self) -> str:
        return f"Redis at {self._link.address.shown}, namespace {self._link.namespace}"

    @property
    def durable(self) -> bool:
        return self._link.address.durability != "none"

    @property
    def roots(self) -> tuple[str, ...]:
        """What the namespace stores; known once it is open."""
        return self._namespace.roots

    async def open(self) -> None:
        async with self._opening:
            if self._closed:
                raise Closed("the engine was closed")
            if self._open:
                return
            await self._link.open(self._namespace.prepare)
            restored = [self._records.write_again, self._groups.declare_again, self._requests.sit_anew]
            self._namespace.on_made_anew += restored
            self._hearing.on_lost.append(self._requests.unheard)
            self._hearing.on_connect += [self._ring, self._requests.sit_again, self._channels.missed]
            self._open = True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._gauge.close()
        self._reader.close()
        self._channels.close()
        self._requests.close()
        with contextlib.suppress(TimeoutError):  # a server that does not answer gets it back by the leases
            async with asyncio.timeout(_HANDING_BACK):
                await asyncio.gather(*(puller.close() for puller in self._pullers.values()))
        for puller in self._pullers.values():
            puller.abandon()
        await self._hearing.close()
        await self._link.close()

    async def abandon(self) -> None:
        """Disappear as a killed process does: nothing is handed back and nothing more is sent."""
        self._closed = True
        self._gauge.close()
        self._reader.close()
        self._channels.close()
        self._requests.close()
        for puller in self._pullers.values():
            puller.abandon()
        await self._hearing.close(abandon=True)
        await self._link.close(abandon=True)

    async def declare(self, groups: Sequence[Group]) -> None:
        self._check_open()
        await self._groups.declare(groups)
        for group in groups:
            if group.paused and (puller := self._pullers.get(group.name)) is not None:
                await puller.hand_back()

    async def forget(self, group: str) -> None:
        self._check_open()
        puller = self._pullers.pop(group, None)
        if puller is not None:
            await puller.stop()
        await self._groups.forget(group)

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        self._check_open()
        return await self._publisher.publish(messages)

    async def delayed(self, limit: int) -> list[Outgoing]:
        self._check_open()
        return await self._publisher.delayed(limit)

    async def cancel(self, subject: str, id: str) -> bool:
        self._check_open()
        return await self._publisher.cancel(subject, id)

    async def pull(self, group: str, limit: int, wait: float) -> list[Delivery]:
        self._check_open()
        puller = self._pullers.get(group)
        if puller is None:
            puller = Puller(self._link, self._hearing, self._namespace, self._clock, group)
            self._pullers[group] = puller
        return await puller.pull(limit, wait)

    async def stop_pulling(self, group: str) -> None:
        if (puller := self._pullers.get(group)) is not None:
            await puller.stop()

    async def begin(self, delivery: Delivery) -> None:
        self._check_open()
        await self._settler.begin(delivery)

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        self._check_open()
        await self._settler.settle(outcomes)

    async def keep(self, outcome: RetryAfter | Release) -> None:
        self._check_open()
        await self._settler.keep(outcome)

    async def parked(self, group: str, after: int = 0, limit: int = 100) -> list[Entry]:
        self._check_open()
        return await self._graveyard.parked(group, after, limit)

    async def unpark(self, group: str, positions: Sequence[int]) -> int:
        self._check_open()
        return await self._graveyard.unpark(group, positions)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        await self._settler.extend(deliveries)

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float = 0.0) -> list[Entry]:
        self._check_open()
        return await self._reader.read(filters, after, limit, wait)

    async def subjects(self, filter: str) -> dict[str, int]:
        self._check_open()
        return await self._reader.subjects(filter)

    async def states(self, entry: Entry) -> dict[str, GroupState]:
        self._check_open()
        return await self._groups.states(entry)

    async def dead_letters(self, group: str | None = None, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        self._check_open()
        return await self._graveyard.letters(group, after, limit)

    async def redrive(self, letters: Sequence[DeadLetter]) -> int:
        self._check_open()
        return await self._graveyard.redrive(letters)

    async def discard(self, letters: Sequence[DeadLetter]) -> int:
        self._check_open()
        return await self._graveyard.discard(letters)

    async def amend(self, letter: DeadLetter, body: bytes) -> bool:
        self._check_open()
        return await self._graveyard.amend(letter, body)

    async def bury(self, letters: Sequence[DeadLetter]) -> int:
        self._check_open()
        return await self._graveyard.bury(letters)

    async def replay(self, group: str, entries: Sequence[Entry], id: str) -> int:
        self._check_open()
        return await self._graveyard.replay(group, entries, id)

    async def broadcast(self, channel: str, body: bytes, headers: Headers) -> int:
        self._check_open()
        return await self._channels.broadcast(channel, body, headers)

    def listen(self, channels: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[Signal | Lagged]]:
        self._check_open()
        return self._channels.listen(channels)

    async def request(self, subject: str, body: bytes, headers: Headers, timeout: float) -> Reply:
        self._check_open()
        return await self._requests.request(subject, body, headers, timeout)

    def serve(self, subject: str, group: str, responder: Responder) -> AbstractAsyncContextManager[None]:
        self._check_open()
        return self._requests.serve(subject, group, responder)

    async def recall(self, key: str) -> Record | None:
        self._check_open()
        return await self._records.recall(key)

    async def register(self, key: str, value: bytes, revision: int) -> int:
        self._check_open()
        return await self._records.register(key, value, revision)

    async def stats(self) -> Stats:
        self._check_open()
        return await self._groups.stats()

    async def space(self) -> Space:
        self._check_open()
        return await self._gauge.read()

    async def purge(self, filter: str, first: int, below: int) -> int:
        self._check_open()
        return await self._records.purge(filter, first, below)

    def _check_open(self) -> None:
        if not self._open or self._closed:
            raise Closed("the engine was closed" if self._closed else "the engine is not open: await engine.open()")

    def _settled(self, delivery: Delivery) -> None:
        if (puller := self._pullers.get(delivery.group)) is not None:
            puller.settled(delivery)

    def _ring(self) -> None:
        """Bells may have rung while nobody heard them."""
        self._reader.ring()
        for puller in self._pullers.values():
            puller.reconnected()
