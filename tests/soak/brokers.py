"""What carries the messages of a run: something that can be killed by parts, and read without the framework."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import redis_truth
from demo_system import eventually
from redis_server import RedisServer
from tidings import embedded
from tidings.embedded.locate import Layout
from tidings.embedded.locks import holder_of

from . import truth


class Broker(Protocol):
    """One run's own."""

    @property
    def url(self) -> str: ...

    @property
    def parts(self) -> Mapping[str, Callable[[], bool]]:
        """What can be killed, and how, which answers whether it was there."""
        ...

    @property
    def version(self) -> str: ...

    async def start(self) -> None: ...

    async def pending(self) -> int:
        """Messages that some group has not settled yet, or has set aside. `OSError` while the broker is away."""
        ...

    async def read(self) -> tuple[tuple[truth.Logged, ...], tuple[truth.Dead, ...]]:
        """The log and the dead letters; for when nothing moves any more."""
        ...

    def runs(self, command: str) -> bool:
        """Whether a process with this command line is the broker's own, and goes with it."""
        ...

    async def close(self) -> None: ...


class Embedded:
    """nats-server with its supervisor: who is killed is started again by those that are left."""

    def __init__(self, folder: Path) -> None:
        self._layout = Layout.of(folder / "broker")
        self.url = f"embedded:{self._layout.root}"
        self.parts = {
            "server": lambda: kill(holder_of(self._layout.fence)),
            "supervisor": lambda: kill(holder_of(self._layout.supervisor_lock)),
        }
        self._broker: embedded.Broker | None = None

    @property
    def version(self) -> str:
        return f"nats-server {self._broker.version}" if self._broker else ""

    async def start(self) -> None:
        self._broker = await embedded.start(self._layout.root)

    async def pending(self) -> int:
        async with truth.connected(self._admin()) as client:
            return await truth.pending(client)

    async def read(self) -> tuple[tuple[truth.Logged, ...], tuple[truth.Dead, ...]]:
        async with truth.connected(self._admin()) as client:
            return await truth.log(client), await truth.dead_letters(client)

    def runs(self, command: str) -> bool:
        return str(self._layout.root) in command

    async def close(self) -> None:
        if self._broker is not None:
            await self._broker.close()
        await eventually(lambda: holder_of(self._layout.fence) is None, 30, lambda: "the broker stays")

    def _admin(self) -> str:
        found = embedded.locate(self._layout.root, user="admin")
        if found is None:
            raise ConnectionError("the broker is not there at the moment")
        return found.url


class Valkey:
    """valkey-server with `appendfsync always`; killed, it is away for up to a second and started again."""

    def __init__(self, folder: Path) -> None:
        self.version = ""
        self.parts = {"server": self._kill}
        self._server = RedisServer(folder / "broker")
        self._ready = False
        self._keeping: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"{self._server.url}/{truth.NAMESPACE}"

    async def start(self) -> None:
        await self._server.start()
        self._ready = True
        said = (await self._server.ask("INFO", "server")).decode()
        [number] = [line.partition(":")[2] for line in said.splitlines() if line.startswith("valkey_version:")]
        self.version = f"valkey-server {number}"
        self._keeping = asyncio.create_task(self._keep())

    def _kill(self) -> bool:
        there, self._ready = self._ready, False
        if there:
            self._server.kill()
        return there

    async def _keep(self) -> None:
        while True:
            if not self._ready:
                await asyncio.sleep(random.random())
                await self._server.start()
                self._ready = True
            await asyncio.sleep(0.05)

    async def pending(self) -> int:
        if not self._ready:
            raise ConnectionError("the server is not there at the moment")
        async with redis_truth.connected(self._server.url) as client:
            return await redis_truth.pending(client, truth.NAMESPACE)

    async def read(self) -> tuple[tuple[truth.Logged, ...], tuple[truth.Dead, ...]]:
        async with redis_truth.connected(self._server.url) as client:
            entries = await redis_truth.log(client, truth.NAMESPACE)
            letters = await redis_truth.letters(client, truth.NAMESPACE)
        log = tuple(truth.Logged(entry.subject, *truth.op_of(entry.body), entry.headers) for entry in entries)
        dead = tuple(
            truth.Dead(letter.group, *truth.op_of(letter.body), letter.headers, letter.reason, letter.attempts)
            for letter in letters
        )
        return log, dead

    def runs(self, command: str) -> bool:
        return False

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping
        self._server.kill()


BROKERS: Mapping[str, Callable[[Path], Broker]] = {"embedded": Embedded, "valkey": Valkey}


def kill(pid: int | None) -> bool:
    """`kill -9`; whether it was there."""
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False
