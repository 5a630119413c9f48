"""What a message costs: bytecodes executed for each, which no other load on the machine changes.

`python tests/cost.py` counts, shows, and renews the stored figures that `tests/system/test_cost.py` compares with.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import tidings
from nats_server import NatsServer
from tidings.engines.nats.pace import Pace

FIGURES = Path(__file__).with_name("cost.json")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_TIMES = 4
MARGIN = 1.1
"""How far above its stored figure a count may be: a loop that turns once more or less, a timer that fires."""
ELSEWHERE = 1.5
"""The same on a version of Python that has no figures of its own: each compiles to other bytecodes."""


class Counted(tidings.Event, subject="events.cost.counted"):
    number: int
    text: str = "x" * 80


class Asked(tidings.Request[int], subject="cost.asked"):
    number: int


class Counter:
    """Counts the bytecodes of the main thread while it is entered."""

    def __init__(self) -> None:
        self.count = 0
        self._before: Any = None

    def __enter__(self) -> Counter:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._executed

    def _executed(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.count += 1
        return self._executed


@asynccontextmanager
async def system() -> AsyncIterator[tuple[tidings.Bus, asyncio.Semaphore]]:
    """A bus on a real server that fsyncs, its worker in this process; the semaphore rises with each handled event."""
    handled = asyncio.Semaphore(0)
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder) / "server")
        await server.start()
        bus = tidings.Bus("cost", url=f"{server.url}/cost")

        @bus.on(Counted, group="count")
        async def count(event: Counted) -> None:
            handled.release()

        @bus.reply(Asked)
        async def answer(asked: Asked) -> int:
            return asked.number

        try:
            async with bus:
                yield bus, handled
        finally:
            server.kill()


async def figures() -> dict[str, float]:
    """Bytecodes for each message, by what is done with it."""
    async with system() as (bus, handled):

        async def one_by_one(count: int) -> None:
            for number in range(count):
                await bus.publish(Counted(number=number))

        async def at_once(count: int) -> None:
            await asyncio.gather(*(bus.publish(Counted(number=number)) for number in range(count)))

        async def many(count: int) -> None:
            await bus.publish_many([Counted(number=number) for number in range(count)])

        async def handle(count: int) -> None:
            for _ in range(count):
                await handled.acquire()

        async def through(count: int) -> None:
            await many(count)
            await handle(count)
            await settled()

        async def settled() -> None:
            # What is acknowledged later would be counted for what comes next.
            worker = (await bus.connect()).worker
            while worker is not None and worker.busy:
                await asyncio.sleep(0.001)

        async def ask(count: int) -> None:
            for number in range(count):
                await bus.request(Asked(number=number))

        found = {"publish, one by one": await counted(one_by_one, 100)}
        # Told, not found out: what is learned depends on time.
        for fsyncs, way in ((False, "singles"), (True, "a batch")):
            bus.engine._publisher._sender._pace = Pace(fsyncs)  # type: ignore[attr-defined]
            found[f"publish at once, as {way}"] = await counted(at_once, 400)
            found[f"publish_many, as {way}"] = await counted(many, 400)
        await bus.work()
        await handle((1 + _TIMES) * (100 + 4 * 400))
        await settled()
        found["publish_many and handle"] = await counted(through, 400)
        found["request and reply"] = await counted(ask, 100)
    return found


async def counted(work: Callable[[int], Awaitable[None]], count: int) -> float:
    """The least of some measurements: on a busy machine messages come in smaller pieces, and each piece costs."""
    await work(count)  # caches are filled, late imports done
    counts = []
    for _ in range(_TIMES):
        with Counter() as counter:
            await work(count)
        counts.append(counter.count)
    return round(min(counts) / count, 1)


def stored() -> dict[str, dict[str, float]]:
    """The stored figures, by version of Python."""
    found: dict[str, dict[str, float]] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return found


def limits() -> dict[str, float]:
    """What each may cost here."""
    known = stored()
    if PYTHON in known:
        return {name: MARGIN * count for name, count in known[PYTHON].items()}
    return {name: ELSEWHERE * count for name, count in max(known.items())[1].items()}


def main() -> None:
    """Count and store."""
    found = asyncio.run(figures())
    before = stored()
    for name, count in found.items():
        old = before.get(PYTHON, {}).get(name)
        sys.stdout.write(f"{name:28} {count:8.1f}" + (f"  before {old:8.1f}\n" if old else "\n"))
    FIGURES.write_text(json.dumps(before | {PYTHON: found}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
