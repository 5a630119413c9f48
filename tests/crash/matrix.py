"""The cells of the matrix, and how one is run: publish, kill at the failpoint, again; then let it finish, and look."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from tidings.errors import Unconfirmed
from tidings.sql import Migrations

from . import truth
from .app import LEASE, Job, Kind, make_table, publisher
from .nursery import Child, Nursery

if TYPE_CHECKING:
    from database_servers import Place

HANDLER = (
    "pull.ended",
    "inbox.marked",
    "handler.returned",
    "outbox.staged",
    "commit.begun",
    "commit.ended",
    "settle.begun",
    "settle.ended",
    "relay.begun",
    "relay.sent",
    "relay.marked",
    "relay.leased",
)
TRANSACTION = HANDLER[1:7]
ROUTE = ("outbox.staged", "outbox.committed", "relay.begun", "relay.sent", "relay.marked", "relay.leased")
FAILPOINTS: dict[Kind, tuple[str, ...]] = {
    "handler": HANDLER,
    "each handler": TRANSACTION,
    "def handler": TRANSACTION,
    "batch handler": TRANSACTION,
    "route": ROUTE,
    "def route": ROUTE[:3],
}
BEFORE: dict[Kind, str] = {"handler": "commit.ended", "route": "outbox.committed"}
"""Where a process dies so that the next one finds something in the outbox (`relay.leased`)."""
DATABASES = ("sqlite", "postgresql")
OPERATIONS = 5
"""Operations for each process."""
_PATIENCE = 60.0
_UNTIL_IT_DIES = 6.0
"""Seconds that a process has to come to its failpoint, before the next one is tried."""


@dataclass(frozen=True)
class Cell:
    kind: Kind
    failpoint: str
    database: str

    @property
    def often(self) -> bool:
        """Whether a process comes to the point for each operation, and not for many of them at once."""
        if self.kind in ("each handler", "route", "def route") and self.failpoint in TRANSACTION:
            return True
        return self.failpoint in ("handler.returned", "outbox.committed") and self.kind != "batch handler"

    @property
    def label(self) -> str:
        return f"{self.kind}, {self.failpoint}, {self.database}"


CELLS = [
    Cell(kind, failpoint, database)
    for kind, failpoints in FAILPOINTS.items()
    for failpoint in failpoints
    for database in DATABASES
]


@dataclass
class Found:
    """What one cell has shown."""

    cell: Cell
    kills: int = 0
    operations: int = 0
    acknowledged: int = 0
    doubled: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.doubled or self.missing or self.other)


class Running:
    """One cell at work, in a namespace and a database of its own."""

    def __init__(self, cell: Cell, number: int, folder: Path, place: Place, tools: Tools, *, defect: str = "") -> None:
        self.cell = cell
        self.found = Found(cell)
        self.place = place
        self.name = f"c{number}"
        socket, log = str(folder / f"{self.name}.socket"), str(folder / f"{self.name}.log")
        self.job = Job(cell.kind, self.name, tools.url, place.url, place.sync_url, socket, log, defect=defect)
        self._tools = tools
        # Without a database: it must not send what the killed ones leave.
        self._publisher = publisher(self.job)
        self._placed: list[str] = []
        self._acknowledged: set[str] = set()

    async def run(self, kills: int) -> Found:
        await asyncio.to_thread(make_table, self.job)
        await Migrations(self.place.url).upgrade()
        async with self._publisher:
            await self._kill(kills)
            await self._finish()
        self._judge(await truth.read(self._tools.log, self.name, self.place))
        return self.found

    async def _kill(self, kills: int) -> None:
        """Processes one after the other, each with some operations to do, until so many have died at the point."""
        until = time.monotonic() + _PATIENCE + 2 * _UNTIL_IT_DIES * kills
        while self.found.kills < kills and time.monotonic() < until:
            failpoint = self.cell.failpoint
            if failpoint == "relay.leased":
                await self._die(BEFORE[self.cell.kind])
                await asyncio.sleep(LEASE / 2)  # what is left is left to that process for a third of the lease
                self.found.kills += await self._die(failpoint, 0)
            else:
                self.found.kills += await self._die(failpoint)
            if self.found.kills % 10 == 9:
                await self._finish()
        if self.found.kills < kills:
            self.found.other.append(f"died {self.found.kills} times only")

    async def _die(self, failpoint: str, operations: int = OPERATIONS) -> bool:
        """Whether a process that had these operations to do died at the failpoint by itself."""
        times = self._tools.dice.choice((1, 2, 3)) if operations and self.cell.often else 1
        child = await self._bear(f"{failpoint}@{times}")
        if self.cell.kind.endswith("handler"):
            await self._publish(operations)
        else:
            await self._post(child, operations)
        died = await child.ended(_UNTIL_IT_DIES) is not None
        status = await child.stop(signal.SIGKILL)
        if status != -signal.SIGKILL:
            self.found.other.append(f"a process ended with {status}, see {self.job.log}")
        return died

    async def _finish(self) -> None:
        """A process that nobody kills does what is left, and ends in order."""
        child = await self._bear("")
        if not self.cell.kind.endswith("handler"):
            await self._post(child, 1)
        try:
            await eventually(self._quiet, "nothing is left to do")
        except TimeoutError as error:
            self.found.other.append(str(error))
        if (status := await child.stop()) not in (0, -signal.SIGTERM):  # uvicorn stops in order, and then by the signal
            self.found.other.append(f"ended with {status} when told to stop, see {self.job.log}")

    async def _quiet(self) -> bool:
        if await self._tools.log.pending(self.name) or await truth.outbox(self.place):
            return False
        return not await self._tools.log.pending(self.name)

    async def _bear(self, failpoint: str) -> Child:
        Path(self.job.socket).unlink(missing_ok=True)
        return await self._tools.nursery.bear(msgspec.structs.replace(self.job, failpoint=failpoint))

    async def _publish(self, count: int) -> None:
        ops = self._ops(count)
        for op in ops:
            await eventually(partial(self._stored, op), f"{op} is stored")
            self._acknowledged.add(op)

    async def _stored(self, op: str) -> bool:
        """A machine that stands still for seconds leaves a publish without an answer: under its id it is repeated."""
        try:
            await self._publisher.publish(f"{self.name}.placed", {"op": op}, id=op)
        except Unconfirmed:
            return False
        return True

    async def _post(self, child: Child, count: int) -> None:
        """Each operation once, until the process is gone: what was not answered may or may not be there."""
        transport = httpx.AsyncHTTPTransport(uds=self.job.socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=10) as client:
            await eventually(lambda: answers(client, child), "the routes answer")
            for op in self._ops(count):
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.post(f"/{self.cell.kind}/{op}")
                    if answer.status_code == 200:
                        self._acknowledged.add(op)
                    else:
                        self.found.other.append(f"{op}: status {answer.status_code}")

    def _ops(self, count: int) -> list[str]:
        first = len(self._placed)
        self._placed += [f"{self.name}-{number}" for number in range(first, first + count)]
        return self._placed[first:]

    def _judge(self, seen: truth.Truth) -> None:
        found = self.found
        found.operations, found.acknowledged = len(self._placed), len(self._acknowledged)
        for what, counts in (("effects", seen.effects), ("events", seen.events), ("copies of id", seen.ids)):
            found.doubled += [f"{op}: {count} {what}" for op, count in counts.items() if count > 1]
        found.missing += [f"{op}: acknowledged, no effect" for op in sorted(self._acknowledged - seen.effects.keys())]
        found.missing += [f"{op}: its effect is there, no event" for op in sorted(seen.effects - seen.events)]
        found.other += [f"{op}: an event without its effect" for op in sorted(seen.events - seen.effects)]
        found.other += [f"{op}: never asked for" for op in seen.effects.keys() - set(self._placed)]
        found.other += [f"a dead letter: {subject}" for subject in seen.dead]


@dataclass(frozen=True)
class Tools:
    """What the cells of one run share."""

    url: str
    """Of the broker."""
    log: truth.Log
    nursery: Nursery
    dice: random.Random


async def answers(client: httpx.AsyncClient, child: Child) -> bool:
    """Whether somebody listens, or never will."""
    try:
        await client.get("/docs")
    except httpx.TransportError:
        return not child.alive
    return True


async def eventually(condition: Callable[[], Awaitable[Any]], what: str, within: float = _PATIENCE) -> None:
    until = time.monotonic() + within
    while not await condition():
        if time.monotonic() > until:
            raise TimeoutError(f"after {within:g} s it was still not so that {what}")
        await asyncio.sleep(0.05)
