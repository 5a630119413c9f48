"""Twenty thousand dead letters, and a person who puts them back with the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from started import PATIENCE, Started, eventually
from tidings import claims, embedded, engines
from tidings.clock import SystemClock
from tidings.engine import Dead, Engine, Failure, Outgoing

LETTERS = 20_000
APP = """
import pathlib
import tidings

bus = tidings.Bus("shop")
effects = (pathlib.Path(__file__).parent / "effects").open("a", buffering=1)


class Ordered(tidings.Event, subject="events.shop.ordered"):
    number: int


@bus.on(Ordered, group="ship")
async def ship(order: Ordered, message: tidings.Message) -> None:
    effects.write(f"{message.id} {order.number}\\n")


@bus.on(Ordered, group="audit")
async def audit(message: tidings.Message) -> None:
    effects.write(f"audit {message.id}\\n")
"""


class Shop:
    """An application with its broker, and commands run beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"TIDINGS_URL": f"embedded:{folder / 'broker'}"}
        (folder / "shop.py").write_text(APP)

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        place = engines.parse(self.environment["TIDINGS_URL"], "")
        async with AsyncExitStack() as stack:
            yield await engines.connect(place, stack, roots=("events.>",), clock=SystemClock(), store=None, user="work")

    def start(self, *words: str) -> Started:
        return Started(*words, cwd=self.folder, environment=self.environment)

    async def run(self, *words: str, input: bytes = b"", code: int = 0) -> str:
        """The output of a command, which must end with this exit code."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "tidings", *words],
            cwd=self.folder,
            env=os.environ | self.environment,
            input=input,
            capture_output=True,
            timeout=4 * PATIENCE,
        )
        assert done.returncode == code, done.stderr.decode()
        return done.stdout.decode()

    def effects(self) -> list[str]:
        """What the handlers did, one line for each time they ran."""
        return (self.folder / "effects").read_text().splitlines()


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    made = Shop(tmp_path)
    yield made
    await asyncio.to_thread(eventually, lambda: embedded.locate(tmp_path / "broker") is None)


async def bury(engine: Engine, count: int, body: bytes = b'{"number": %d}') -> None:
    """Store events, all of which die in the group `ship` and are handled in the group `audit`."""
    await claims.declare(engine, [claims.Wish("ship", ("events.shop.ordered",))], lease=30.0)
    for first in range(0, count, 1000):
        numbers = range(first, min(first + 1000, count))
        await engine.publish(
            [
                Outgoing("events.shop.ordered", body % n if b"%d" in body else body, {"ce-id": f"n{n}"}, f"n{n}")
                for n in numbers
            ]
        )
    died = 0
    while died < count:
        deliveries = await engine.pull("ship", 500, 5.0)
        failures = [
            Dead(d, "handler_error", Failure("ValueError", f"no stock of {d.entry.position}", "", "shop:ship"))
            for d in deliveries
        ]
        await engine.settle(failures)
        died += len(deliveries)


async def dead(engine: Engine) -> int:
    return (await engine.stats()).groups["ship"].dead


@pytest.mark.timeout(180)
async def test_a_redrive_killed_half_way_goes_on_with_the_rest(shop: Shop) -> None:
    """`dlq redrive --all --rate 2000/s` of 20,000, killed with -9 half-way and started again: the group that failed
    handles every one once, the other group none again."""
    async with shop.engine() as engine:
        await bury(engine, LETTERS)
        [kind] = json.loads(await shop.run("dlq", "ls", "--json"))
        assert (kind["group"], kind["reason"], kind["count"]) == ("ship", "handler_error", LETTERS)

        with shop.start("dlq", "redrive", "--all", "--rate", "2000/s", "--yes") as doomed:
            while await dead(engine) > LETTERS * 3 // 5:
                assert doomed.process.poll() is None, doomed.output
            doomed.signal(signal.SIGKILL)
            assert doomed.ended() == -signal.SIGKILL
        left = await dead(engine)
        assert 0 < left < LETTERS

        begun = SystemClock().monotonic()
        said = json.loads(await shop.run("dlq", "redrive", "--all", "--rate", "2000/s", "--yes", "--json"))
        took = SystemClock().monotonic() - begun
        assert said == {"selected": left, "done": left}
        assert took > (left - 200) / 2000
        assert await dead(engine) == 0
        await shop.run("dlq", "redrive", "--all", "--yes", code=5)

        with shop.start("run", "shop:bus", "--group", "ship") as worker:
            worker.until("ready:")
            await asyncio.to_thread(eventually, lambda: len(shop.effects()) >= LETTERS, 2 * PATIENCE)
            await _idle(engine)
            worker.signal(signal.SIGTERM)
            assert worker.ended() == 0
        counts = Counter(line.split()[0] for line in shop.effects())
        assert counts == {f"n{number}": 1 for number in range(LETTERS)}


async def _idle(engine: Engine) -> None:
    async with asyncio.timeout(PATIENCE):
        while (ship := (await engine.stats()).groups["ship"]) and (ship.waiting or ship.leased or ship.delayed):
            pass
