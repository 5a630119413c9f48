"""`./test soak`: minutes of publishing and handling under random `kill -9`, and a verdict as the last line."""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import tidings

from .brokers import BROKERS, Broker
from .checker import Verdict, check
from .system import Nemesis, running

KILLS_A_MINUTE, ACKNOWLEDGED_A_MINUTE = 10, 5_000
"""What a run needs to say anything: 100 kills and 50,000 acknowledged messages in ten minutes."""
WORKERS, PUBLISHERS = 3, 2
STATUS = {"pass": 0, "fail": 1, "unknown": 2}
SHOWN = 20


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./test soak",
        description="Publish and handle under random kill -9 of workers, publishers and broker, then "
        "check what is really there. Exit status: 0 pass, 1 fail, 2 unknown (too few kills or messages).",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults (default: 10)")
    parser.add_argument("--engine", choices=BROKERS, default="embedded", help="what carries the messages")
    parser.add_argument("--seed", type=int, default=None, help="of the faults and the workload (default: a new one)")
    parser.add_argument("--rate", type=float, default=180.0, help="messages a second to publish (default: 180)")
    parser.add_argument("--keep", type=Path, help="an empty or new folder to leave everything in, for looking into it")
    chosen = parser.parse_args(argv)
    if not chosen.minutes > 0:
        parser.error("--minutes: more than nothing")
    return chosen


async def soak(folder: Path, broker: Broker, minutes: float, seed: int, rate: float) -> tuple[Verdict, Nemesis]:
    """Run it and judge."""
    async with running(folder, broker) as system:
        for _ in range(WORKERS):
            system.add_worker()
        for number in range(PUBLISHERS):
            system.add_publisher(rate / PUBLISHERS, seed + number)
        await system.begun()
        say(f"{broker.version}, Python {platform.python_version()}, tidings {tidings.__version__}")
        nemesis = Nemesis(system, seed)
        telling = asyncio.create_task(tell(nemesis))
        try:
            await nemesis.run(minutes * 60)
        finally:
            telling.cancel()
        for publisher in system.publishers:
            await publisher.stop(60)
        say("the faults are over: waiting until everything is handled")
        # Ordered groups pause after each fault, for a lease: they may have as much left as the faults lasted.
        await system.drained(minutes * 60 + 120)
        await system.stop()
        found = await system.truth()
    verdict = check(found)
    return check(found, tuple(lacking(verdict, nemesis, minutes))), nemesis


def lacking(verdict: Verdict, nemesis: Nemesis, minutes: float) -> list[str]:
    """What the run needs more of to say anything."""
    needed = {"kills": (nemesis.count, KILLS_A_MINUTE), "acknowledged": (verdict.acknowledged, ACKNOWLEDGED_A_MINUTE)}
    few = [
        f"{count:,} {what}, {minutes * a_minute:,.0f} are needed in {minutes:g} minutes"
        for what, (count, a_minute) in needed.items()
        if count < minutes * a_minute
    ]
    return few + [f"no {what} was killed" for what, count in nemesis.kills.items() if not count]


async def tell(nemesis: Nemesis) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(30)
        say(f"{time.monotonic() - began:.0f} s: {nemesis.count} kills")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(verdict: Verdict, nemesis: Nemesis) -> None:
    """Everything found, and as the last line the verdict."""
    for name in ("lost", "doubled", "reordered", "other"):
        found = getattr(verdict, name)
        for violation in found[:SHOWN]:
            print(f"{name}: {violation}")
        if len(found) > SHOWN:
            print(f"{name}: {len(found) - SHOWN} more")
    for lack in verdict.missing:
        print(f"unknown: {lack}")
    print(f"killed: {', '.join(f'{count} {what}' for what, count in nemesis.kills.items())}")
    print(f"{verdict.recovered} stored although their publisher was killed before it knew")
    print(f"reordered is out of {verdict.ordered:,} effects in ordered groups")
    print(verdict.line(nemesis.count), flush=True)


def main(argv: list[str]) -> int:
    chosen = parse(argv)
    seed = random.SystemRandom().randrange(10**9) if chosen.seed is None else chosen.seed
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="tidings-soak-"))
    print(f"seed {seed}, {chosen.minutes:g} minutes on {chosen.engine}, in {folder}", flush=True)
    broker = BROKERS[chosen.engine](folder.absolute())
    verdict, nemesis = asyncio.run(soak(folder.absolute(), broker, chosen.minutes, seed, chosen.rate))
    report(verdict, nemesis)
    if chosen.keep is None and verdict.word == "pass":
        shutil.rmtree(folder)
    return STATUS[verdict.word]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
