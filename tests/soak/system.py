"""A broker, workers and publishers in one folder, each a process that can be killed; and what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
from redis.exceptions import RedisError

from demo_system import clean_environment, eventually

from . import events, truth
from .brokers import Broker, kill
from .history import History

TESTS = Path(__file__).resolve().parents[1]
WEIGHTS = {"worker": 8, "publisher": 3, "server": 6, "supervisor": 2}
"""How often each is killed, beside the others."""


class Child:
    """A process of the workload that is started again whenever it ends, until `stop`."""

    def __init__(self, system: System, name: str, *arguments: str, environment: dict[str, str], again: bool) -> None:
        self._system = system
        self._name = name
        self._arguments = arguments
        self._environment = environment
        self._again = again
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        incarnation = 0
        while not self._stopping:
            incarnation += 1
            words = [word.replace("{incarnation}", str(incarnation)) for word in self._arguments]
            with (self._system.folder / "log" / f"{self._name}.log").open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", *words),
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            status = await self._process.wait()
            # Told to stop before it could listen, it ends by the signal; a crash point kills it by itself.
            expected = (0, -signal.SIGKILL, -signal.SIGTERM if self._stopping else 0)
            if status not in expected:
                self._system.strange.append(f"{self._name} ended with {status}, see its log")
                await asyncio.sleep(0.5)
            if not self._again and status == 0:
                return

    def kill(self) -> bool:
        """`kill -9`; whether it was there."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        process.kill()
        return True

    async def ended(self) -> None:
        await self._task

    async def stop(self, within: float) -> None:
        """SIGTERM, and wait for its end; one that does not come is noted and killed."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(self._task)
        except TimeoutError:
            self._system.strange.append(f"{self._name} did not end within {within:g} s of SIGTERM")
            await self.abandon()

    async def abandon(self) -> None:
        self._stopping = True
        while not self._task.done():
            self.kill()
            await asyncio.wait([self._task], timeout=0.1)


class System:
    """One run. `environment` goes to its workers and publishers."""

    def __init__(self, folder: Path, broker: Broker, environment: dict[str, str]) -> None:
        self.folder = folder
        self.broker = broker
        self.strange: list[str] = []
        self.workers: list[Child] = []
        self.publishers: list[Child] = []
        self._environment = {
            **clean_environment(),
            "PYTHONPATH": str(TESTS),
            "SOAK_RUN": str(folder),
            "TIDINGS_LEASE": "2s",
            **environment,
        }

    async def start(self) -> None:
        for name in ("history", "log"):
            (self.folder / name).mkdir(parents=True)
        events.make_tables(self.folder)
        await self.broker.start()

    def add_worker(self, **environment: str) -> Child:
        self.workers.append(self._child(f"worker{len(self.workers)}", "soak.worker", environment=environment))
        return self.workers[-1]

    def add_publisher(self, rate: float, seed: int, count: int = 0, **environment: str) -> Child:
        name = f"p{len(self.publishers)}"
        words = (f"{name}.{{incarnation}}", str(rate), str(count), str(seed))
        self.publishers.append(self._child(name, "soak.publisher", *words, again=count == 0, environment=environment))
        return self.publishers[-1]

    def _child(self, name: str, module: str, *words: str, environment: dict[str, str], again: bool = True) -> Child:
        arguments = (module, str(self.folder), self.broker.url, *words)
        return Child(self, name, *arguments, environment={**self._environment, **environment}, again=again)

    async def begun(self) -> None:
        """Wait until publishers and workers are at work."""
        await eventually(lambda: truth.query(self.folder, "SELECT 1 FROM effects LIMIT 1"), 60)

    async def drained(self, within: float, standstill: float = 60.0) -> bool:
        """Wait until no group has anything pending and the outbox is empty; False when that takes too long, or when
        there is no new effect and no fewer left than ever before for `standstill` seconds."""
        began = moved = now = time.monotonic()
        quiet, done, least = 0, -1, sys.maxsize
        while now < began + within and now < moved + standstill:
            with contextlib.suppress(OSError, nats.errors.Error, RedisError):  # the broker may just be coming back
                left, effects = await self._left(), truth.count_effects(self.folder)
                if left < least or effects > done:
                    moved = now
                least, done = min(left, least), max(effects, done)
                quiet = 0 if left else quiet + 1
            if quiet >= 2:
                return True
            await asyncio.sleep(0.3)
            now = time.monotonic()
        self.strange.append(
            f"not drained {now - began:.0f} s after the last fault, the last {now - moved:.0f} s without progress: "
            f"{least:,} left"
        )
        return False

    async def _left(self) -> int:
        """What no group has settled yet, and what waits in the outbox."""
        return await self.broker.pending() + truth.outbox_rows(self.folder)

    async def stop(self) -> None:
        """Workers and publishers, in order."""
        await asyncio.gather(*(child.stop(40) for child in (*self.publishers, *self.workers)))

    async def truth(self) -> truth.Truth:
        """Read everything; for when nothing moves any more."""
        log, dead = await self.broker.read()
        leftovers = [*self.strange]
        if rows := truth.outbox_rows(self.folder):
            leftovers.append(f"{rows} rows left in the outbox")
        # The broker's own go with its last user, which is this process.
        left = [" ".join(one.cmdline()) for one in truth.processes(str(self.folder))]
        leftovers += [f"a process is left: {line}" for line in left if not self.broker.runs(line)]
        operations, effects = truth.operations(self.folder), truth.effects(self.folder)
        return truth.Truth(operations, log, dead, effects, tuple(leftovers))

    async def close(self) -> None:
        """End everything that is left of the run, by the pids that belong to it."""
        for child in (*self.publishers, *self.workers):
            await child.abandon()
        await self.broker.close()
        for process in truth.processes(str(self.folder)):
            if not self.broker.runs(" ".join(process.cmdline())):
                kill(process.pid)


@asynccontextmanager
async def running(folder: Path, broker: Broker, **environment: str) -> AsyncIterator[System]:
    """A started system; afterwards nothing of it is left."""
    system = System(folder, broker, environment)
    try:
        await system.start()
        yield system
    finally:
        await system.close()


class Nemesis:
    """Kills at random, as its seed says."""

    def __init__(self, system: System, seed: int) -> None:
        self.kills = {"worker": 0, "publisher": 0, **dict.fromkeys(system.broker.parts, 0)}
        self._system = system
        self._random = random.Random(seed)
        self._history = History(system.folder / "history", "nemesis")

    @property
    def count(self) -> int:
        return sum(self.kills.values())

    async def run(self, seconds: float, shortest: float = 1.5, longest: float = 7.0) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self._random.uniform(shortest, longest)))
            [what] = self._random.choices(tuple(self.kills), [WEIGHTS[what] for what in self.kills])
            for one in tuple(self._system.broker.parts) if self._random.random() < 0.05 else (what,):
                killed = self._kill(one)
                self.kills[one] += killed
                self._history.say("fault", "ok" if killed else "fail", target=one)

    def _kill(self, what: str) -> bool:
        if part := self._system.broker.parts.get(what):
            return part()
        children = self._system.workers if what == "worker" else self._system.publishers
        return self._random.choice(children).kill()
