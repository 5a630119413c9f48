"""`python -m soak.publisher FOLDER URL NAME RATE COUNT SEED`: publish until SIGTERM, or until COUNT are acknowledged.

Each of its lanes publishes on keys of its own and waits for each answer, so that the order of a key is known. One of
them publishes batches. An answer that stays away is asked for again under the same id, as the framework's error says.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

import tidings
from soak import defects, events
from soak.history import History
from tidings.errors import EngineUnavailable, StoreFull, Unconfirmed
from tidings.logs import configure

LANES = 8
BATCH = 10
SHARES: tuple[tuple[events.Kind, float], ...] = (("poison", 0.001), ("invalid", 0.002), ("flaky", 0.012))
"""Operations that fail, by chance: up to which part of 1."""
KINDS: tuple[events.Kind, ...] = ("poison", "invalid", "flaky", "slow")


class Publisher:
    """The lanes of one process."""

    def __init__(self, bus: tidings.Bus, history: History, name: str, rate: float, seed: int) -> None:
        self.acknowledged = 0
        self._bus = bus
        self._history = history
        self._name = name
        self._pause = LANES / rate if rate else 0.0
        self._random = random.Random(seed)
        self._numbers: dict[str, int] = {}
        self._count = 0
        self._over = asyncio.Event()

    def stop(self) -> None:
        self._over.set()

    async def run(self, most: int) -> None:
        """Until `stop`, or until `most` are acknowledged (0: no limit); every operation begun is ended."""
        lanes = [self._singly(f"{self._name}-{lane}", most) for lane in range(LANES - 1)]
        await asyncio.gather(*lanes, self._batches(f"{self._name}-batch", most))

    def _ended(self, most: int) -> bool:
        return self._over.is_set() or (most > 0 and self.acknowledged >= most)

    def _next(self, key: str, kinds: bool = True) -> events.Placed:
        """The next operation. One that can fail has a key of its own: it would hold up others of an ordered one."""
        draw = self._random.random() if kinds else 1.0
        for kind, upto in SHARES:
            if draw < upto:
                return self._alone(kind)
        number = self._numbers[key] = self._numbers.get(key, 0) + 1
        return events.Placed(op=self._op(), key=key, number=number, kind="plain")

    def _alone(self, kind: events.Kind) -> events.Placed:
        op = self._op()
        return events.Placed(op=op, key=op, number=1, kind=kind)

    def _op(self) -> str:
        self._count += 1
        return f"{self._name}/{self._count}"

    async def one_of_each(self) -> None:
        """For runs too short to leave it to chance."""
        for kind in KINDS:
            await self._publish(self._alone(kind))

    async def _singly(self, key: str, most: int) -> None:
        while not self._ended(most):
            await self._publish(self._next(key))
            await asyncio.sleep(self._pause)

    async def _batches(self, key: str, most: int) -> None:
        while not self._ended(most):
            await self._publish_many([self._next(key, kinds=False) for _ in range(BATCH)])
            await asyncio.sleep(self._pause * BATCH)

    async def _publish(self, placed: events.Placed) -> None:
        """Until it is acknowledged."""
        what = sent(placed)
        self._invoke(placed)
        id: str | None = None
        while True:
            try:
                # The key as well for those that are no event: without one they would be a sequence of their own.
                await self._bus.publish(*what, id=id, key=placed.key)
                break
            except Unconfirmed as error:
                id = error.receipt.id
            except (EngineUnavailable, StoreFull):
                pass  # nothing was sent
            await asyncio.sleep(0.1)
        self._history.say("publish", "ok", op=placed.op)
        self.acknowledged += 1

    async def _publish_many(self, batch: list[events.Placed]) -> None:
        for placed in batch:
            self._invoke(placed)
        while True:
            try:
                await self._bus.publish_many(batch)
                break
            except Unconfirmed as error:
                await self._publish_again(batch, [receipt.id for receipt in error.receipts])
                break
            except (EngineUnavailable, StoreFull):
                await asyncio.sleep(0.1)
        for placed in batch:
            self._history.say("publish", "ok", op=placed.op)
        self.acknowledged += len(batch)

    async def _publish_again(self, batch: list[events.Placed], ids: list[str]) -> None:
        for placed, id in zip(batch, ids, strict=True):
            while True:
                try:
                    await self._bus.publish(placed, id=id)
                    break
                except (Unconfirmed, EngineUnavailable, StoreFull):
                    await asyncio.sleep(0.1)

    def _invoke(self, placed: events.Placed) -> None:
        what = sent(placed)
        body = msgspec.json.encode(what[-1])
        detail = {"op": placed.op, "key": placed.key, "number": placed.number, "kind": placed.kind}
        self._history.say("publish", "invoke", **detail, sha=hashlib.sha256(body).hexdigest())


def sent(placed: events.Placed) -> tuple[Any, ...]:
    """What `bus.publish` is given: the event, or for `invalid` a body on its subject that cannot become one."""
    if placed.kind != "invalid":
        return (placed,)
    return "events.soak.placed", {"op": placed.op, "key": placed.key, "number": "none", "kind": placed.kind}


async def main(folder: Path, url: str, name: str, rate: float, most: int, seed: int) -> None:
    history = History(folder / "history", name)
    async with events.make_bus(folder, url, history) as bus:
        publisher = Publisher(bus, history, name, rate, seed)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, publisher.stop)
        if most:
            await publisher.one_of_each()
        await publisher.run(most)
    history.say("stop", "ok")


if __name__ == "__main__":
    configure("warning")
    where = Path(sys.argv[1])
    defects.arm(where)
    asyncio.run(main(where, sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])))
