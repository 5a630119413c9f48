"""The NATS engine: one connection to one namespace on a NATS server or cluster with JetStream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

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
from ...errors import Closed, TooLarge
from ...subjects import check_group
from .api import JetStream
from .census import Census
from .groups import Groups
from .housekeeping import keep_tidy
from .later import Later
from .layout import Layout
from .link import Link, Locate
from .live import Live
from .parking import Parking
from .publish import Publisher
from .pull import Puller
from .purge import Purger
from .read import Reader
from .records import Records
from .redrive import Graveyard
from .replay import Replayer
from .settle import Settler
from .space import Gauge
from .streams import Mode, prepare

_HANDING_BACK: Final = 4.0
"""Seconds that `close` gives the server to take back what was pulled."""
_MIB: Final = 1024 * 1024
_RESERVE: Final = 64 * 1024
"""What a dead letter may add to a message."""


class NatsEngine:
    """`tidings.engine.Engine` on NATS JetStream. `locate` says where the servers are, each time it is needed.

    `replicas` is the number of copies that a new namespace is kept in; None is three in a cluster, one without.
    `mode` says what opening may change: see `streams.Mode`. `fsyncs` says whether the server writes each message to the
    disk before it answers (`sync_interval: always`); None finds out.
    """

    durable = True

    def __init__(
        self,
        locate: Locate,
        *,
        namespace: str = "tidings",
        roots: Sequence[str] = ("events.>",),
        clock: Clock | None = None,
        timeout: float = 10.0,
        replicas: int | None = None,
        mode: Mode = "extend",
        fsyncs: bool | None = None,
    ) -> None:
        self._layout = Layout(namespace, tuple(roots))
        self._clock = clock or SystemClock()
        self._link = Link(locate, name=f"tidings {namespace}")
        self._js = JetStream(self._link, timeout)
        self._replicas = replicas
        self._mode: Mode = mode
        self._groups = Groups(self._js, self._layout)
        self._gauge = Gauge(self._js, self._layout)
        self._publisher = Publisher(self._js, self._layout, self._clock, self._gauge, fsyncs)
        self._purger = Purger(self._js, self._layout)
        self._settler = Settler(self._js, self._layout, self._clock, self._forget_delivery)
        self._graveyard = Graveyard(self._js, self._layout, self._groups)
        self._parking = Parking(self._js, self._layout, self._groups)
        self._census = Census(self._js, self._layout, self._clock, self._graveyard)
        self._replayer = Replayer(self._js, self._layout, self._census)
        self._reader = Reader(self._js, self._layout)
        self._records = Records(self._js, self._layout)
        self._later = Later(self._js, self._layout)
        self._live = Live(self._link, timeout, lambda: self.max_message)
        self._pullers: dict[str, Puller] = {}
        self._opening = asyncio.Lock()
        self._tidying: asyncio.Task[None] | None = None
        self._open = False
        self._closed = False

    @property
    def description(self) -> str:
        return f"NATS JetStream at {self._link.server or 'no server yet'}, namespace {self._layout.namespace}"

    @property
    def roots(self) -> tuple[str, ...]:
        """What the namespace stores; known once it is open."""
        return self._publisher.roots

    @property
    def max_message(self) -> int:
        return min(_MIB, self._link.max_payload - _RESERVE)

    async def open(self) -> None:
        async with self._opening:
            if self._closed:
                raise Closed("the engine was closed")
            if self._open:
                return
            try:
                async with asyncio.timeout(30.0):
                    await self._link.open(min(6.0, self._js.timeout))
                    self._publisher.roots = await prepare(self._js, self._layout, self._replicas, self._mode)
            except BaseException:
                await self._link.close()
                raise
            self._link.on_connect(self._ring)
            self._open = True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._tidying is not None:
            self._tidying.cancel()
        self._gauge.close()
        self._reader.close()
        self._live.close()
        with contextlib.suppress(TimeoutError):  # a server that does not answer gets it back by the leases
            async with asyncio.timeout(_HANDING_BACK):
                await asyncio.gather(*(puller.close() for puller in self._pullers.values()))
        for puller in self._pullers.values():
            puller.abandon()
        await self._link.close()

    async def abandon(self) -> None:
        """Disappear as a killed process does: nothing is handed back and nothing more is sent."""
        self._closed = True
        if self._tidying is not None:
            self._tidying.cancel()
        self._gauge.close()
        self._reader.close()
        self._live.close()
        for puller in self._pullers.values():
            puller.abandon()
        await self._link.abandon()

    async def declare(self, groups: Sequence[Group]) -> None:
        self._check_open()
        for group in groups:
            check_group(group.name)
            shape = await self._groups.declare(group)
            puller = self._pullers.get(group.name)
            if puller is not None:
                puller.reshaped(shape)
                if group.paused:
                    await puller.stop()

    async def forget(self, group: str) -> None:
        self._check_open()
        puller = self._pullers.pop(group, None)
        if puller is not None:
            await puller.stop()
        await self._groups.forget(group)

    def publish(self, messages: Sequence[Outgoing]) -> Coroutine[Any, Any, list[Stored]]:
        self._check_open()
        return self._publisher.publish(messages, self.max_message)

    async def delayed(self, limit: int) -> list[Outgoing]:
        self._check_open()
        return await self._later.delayed(limit)

    async def cancel(self, subject: str, id: str) -> bool:
        self._check_open()
        return await self._later.cancel(subject, id)

    async def pull(self, group: str, limit: int, wait: float) -> list[Delivery]:
        self._check_open()
        puller = self._pullers.get(group)
        if puller is None:
            if self._tidying is None:  # those who pull keep the house
                self._tidying = asyncio.create_task(keep_tidy(self._js, self._layout, self._clock))
            settle = self._settler.settle
            puller = self._pullers[group] = Puller(self._js, self._layout, self._clock, self._groups, group, settle)
        return await puller.pull(limit, wait)

    async def stop_pulling(self, group: str) -> None:
        if (puller := self._pullers.get(group)) is not None:
            await puller.stop()

    async def begin(self, delivery: Delivery) -> None:
        self._check_open()
        await self._settler.begin(delivery)

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        self._check_open()
        if outcomes:
            await self._settler.settle(outcomes)

    async def keep(self, outcome: RetryAfter | Release) -> None:
        self._check_open()
        await self._settler.keep(outcome)

    async def parked(self, group: str, after: int = 0, limit: int = 100) -> list[Entry]:
        self._check_open()
        return await self._parking.parked(group, after, limit)

    async def unpark(self, group: str, positions: Sequence[int]) -> int:
        self._check_open()
        return await self._parking.unpark(group, positions)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        await self._settler.extend(deliveries, self._groups.lease)

    async def read(self, filters: Sequence[str], after: int, limit: int, wait: float = 0.0) -> list[Entry]:
        self._check_open()
        return await self._reader.read(filters, after, limit, wait)

    async def subjects(self, filter: str) -> dict[str, int]:
        self._check_open()
        return await self._census.subjects(filter)

    async def states(self, entry: Entry) -> dict[str, GroupState]:
        self._check_open()
        return await self._census.states(entry)

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
        if len(body) > self.max_message:
            raise TooLarge(len(body), self.max_message)
        return await self._graveyard.amend(letter, body)

    async def bury(self, letters: Sequence[DeadLetter]) -> int:
        self._check_open()
        return await self._graveyard.bury(letters)

    async def replay(self, group: str, entries: Sequence[Entry], id: str) -> int:
        self._check_open()
        return await self._replayer.replay(group, entries, id)

    async def broadcast(self, channel: str, body: bytes, headers: Headers) -> bool:
        self._check_open()
        return await self._live.broadcast(channel, body, headers)

    def listen(self, channels: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[Signal | Lagged]]:
        self._check_open()
        return self._live.listen(channels)

    def request(self, subject: str, body: bytes, headers: Headers, timeout: float) -> Coroutine[Any, Any, Reply]:
        self._check_open()
        return self._live.request(subject, body, headers, timeout)

    def serve(self, subject: str, group: str, responder: Responder) -> AbstractAsyncContextManager[None]:
        self._check_open()
        return self._live.serve(subject, group, responder)

    async def recall(self, key: str) -> Record | None:
        self._check_open()
        return await self._records.recall(key)

    async def register(self, key: str, value: bytes, revision: int) -> int:
        self._check_open()
        return await self._records.register(key, value, revision)

    async def stats(self) -> Stats:
        self._check_open()
        return await self._census.stats()

    async def space(self) -> Space:
        self._check_open()
        return await self._gauge.read()

    async def purge(self, filter: str, first: int, below: int) -> int:
        self._check_open()
        return await self._purger.purge(filter, first, below)

    def _check_open(self) -> None:
        if not self._open or self._closed:
            raise Closed("the engine was closed" if self._closed else "the engine is not open: await engine.open()")

    def _forget_delivery(self, delivery: Delivery) -> None:
        if (puller := self._pullers.get(delivery.group)) is not None:
            puller.settled(delivery)

    def _ring(self) -> None:
        self._live.reconnected()
        for puller in self._pullers.values():
            puller.reconnected()
