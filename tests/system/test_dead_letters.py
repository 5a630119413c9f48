"""Twenty thousand dead letters, and a person who puts them back with the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from started import PATIENCE, Started, eventually
from tidings import claims, embedded, engines
from tidings.clock import SystemClock
from tidings.engine import Dead, Delivery, Done, Engine, Failure, Outcome, Outgoing

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


async def bury(engine: Engine, bodies: Sequence[bytes]) -> None:
    """Store events with the ids n0, n1, ..., which all die in the group `ship` and are done in the group `audit`."""
    subject, groups = "events.shop.ordered", ("ship", "audit")
    await claims.declare(engine, [claims.Wish(group, (subject,)) for group in groups], lease=30.0)
    await engine.publish([Outgoing(subject, body, {"ce-id": f"n{n}"}, f"n{n}") for n, body in enumerate(bodies)])
    await settle(engine, "ship", len(bodies), lambda delivery: Dead(delivery, "handler_error", no_stock(delivery)))
    await settle(engine, "audit", len(bodies), Done)


async def settle(engine: Engine, group: str, count: int, outcome: Callable[[Delivery], Outcome]) -> None:
    async with asyncio.timeout(2 * PATIENCE):
        while count:
            deliveries = await engine.pull(group, min(count, 500), 5.0)
            await engine.settle([outcome(delivery) for delivery in deliveries])
            count -= len(deliveries)


def no_stock(delivery: Delivery) -> Failure:
    return Failure("ValueError", f"no stock of {delivery.entry.position}", "", "shop:ship")


async def dead(engine: Engine) -> int:
    return (await engine.stats()).groups["ship"].dead


@pytest.mark.timeout(180)
async def test_a_redrive_killed_half_way_goes_on_with_the_rest(shop: Shop) -> None:
    """`dlq redrive --all --rate 2000/s` of 20,000, killed with -9 half-way and started again: the group that failed
    handles every one once, the other group none again."""
    async with shop.engine() as engine:
        await bury(engine, [b'{"number": %d}' % number for number in range(LETTERS)])
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
        assert said["done"] == said["selected"]
        # What the killed command moved last may still have been counted as dead a moment later.
        assert 0 <= left - said["done"] <= 100
        assert took > (left - 200) / 2000
        assert await dead(engine) == 0
        assert await shop.run("dlq", "redrive", "--all", "--yes") == "nothing to put back\n"

        with shop.start("run", "shop:bus") as worker:
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


async def test_letters_are_mended_dropped_and_brought_back(shop: Shop) -> None:
    """The whole way of a person: what is no order is edited and handled under its own id; what was exported and
    dropped comes back byte for byte."""
    async with shop.engine() as engine:
        await bury(engine, [b'{"number": "one"}', b"\xff\x00"])
        lines = (await shop.run("dlq", "export")).encode()
        before = await engine.dead_letters()
        assert [letter.entry.body for letter in before] == [b'{"number": "one"}', b"\xff\x00"]

        await shop.run("dlq", "drop", "--all", "--yes", "--because", "to bring them back")
        assert await engine.dead_letters() == []
        assert "2 stored" in await shop.run("dlq", "import", "-", input=lines)
        assert "2 there already" in await shop.run("dlq", "import", "-", input=lines)
        assert await engine.dead_letters() == before

        edit = ("dlq", "edit", before[0].key, "--body", "-", "--app", "shop:bus")
        await shop.run(*edit, input=b'{"number": "two"}', code=2)
        await shop.run(*edit, input=b'{"number": 2}')
        await shop.run("dlq", "redrive", before[0].key)
        with shop.start("run", "shop:bus") as worker:
            worker.until("ready:")
            await asyncio.to_thread(eventually, lambda: shop.effects() == ["n0 2"])
            worker.signal(signal.SIGTERM)
            assert worker.ended() == 0
        assert [act["what"] for act in json.loads(await shop.run("dlq", "log", "--json"))] == ["drop", "edit"]


TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


async def test_progress_is_shown_on_a_terminal_only(shop: Shop) -> None:
    """A person sees how far it is; a pipe gets nothing but the result."""
    async with shop.engine() as engine:
        await bury(engine, [b"{}"] * 600)
        command = ("-m", "tidings", "dlq", "redrive", "--all", "--yes", "--rate", "2000/s")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", TERMINAL, sys.executable, *command),
            cwd=shop.folder,
            env=os.environ | shop.environment | {"TERM": "xterm"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        shown, _ = await process.communicate()
        assert process.returncode == 0
        assert b"100%" in shown
        assert b"600 put back to ship" in shown

        await settle(engine, "ship", 600, lambda delivery: Dead(delivery, "rejected", no_stock(delivery)))
        with shop.start("dlq", "redrive", "--all") as piped:
            assert piped.ended() == 0
            assert "%" not in piped.output
