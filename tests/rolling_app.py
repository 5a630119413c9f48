"""A small shop in two releases, for tests that run both at once: `rolling_app.py worker|publisher 1|2 FILE [ROUNDS]`.

Release 2 adds a field to `Ordered`, gives `Priced` another shape (version 2) and has a new event, `Shipped`. Workers
append a line to FILE for each message they handle: release, group, what it was, its number.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import tidings


class Ordered1(tidings.Event, subject="events.shop.ordered"):
    number: int


class Ordered2(tidings.Event, subject="events.shop.ordered"):
    number: int
    note: str = ""


class Priced1(tidings.Event, subject="events.shop.priced"):
    number: int
    euros: int


class Priced2(tidings.Event, subject="events.shop.priced", version=2):
    number: int
    cents: int


class Shipped2(tidings.Event, subject="events.shop.shipped"):
    number: int


def release(number: int, file: str) -> tidings.Bus:
    bus = tidings.Bus("shop")
    effects = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(message: tidings.Message[Any]) -> None:
        event = message.data
        if isinstance(event, Priced2):
            assert event.cents == event.number * 100, event
        if isinstance(event, Priced1):
            assert event.euros == event.number, event
        what = f"{type(event).__name__.rstrip('12')} {event.number}"
        os.write(effects, f"{number} {message.group} {what}\n".encode())

    if number == 1:

        @bus.on(Ordered1, group="orders")
        async def orders(message: tidings.Message[Ordered1]) -> None:
            note(message)

        @bus.on("events.shop.>", group="books")
        async def books(message: tidings.Message[Ordered1 | Priced1]) -> None:
            note(message)

        return bus

    @bus.upcast(Priced2, from_version=1)
    def in_cents(body: dict[str, Any]) -> dict[str, Any]:
        return {"number": body["number"], "cents": 100 * body["euros"]}

    @bus.on(Ordered2, Shipped2, group="orders")
    async def more_orders(message: tidings.Message[Ordered2 | Shipped2]) -> None:
        note(message)

    @bus.on("events.shop.>", group="books")
    async def more_books(message: tidings.Message[Ordered2 | Priced2 | Shipped2]) -> None:
        note(message)

    return bus


async def work(bus: tidings.Bus) -> None:
    """Handle until SIGTERM."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with bus:
        await bus.work()
        print("ready", flush=True)
        await over.wait()


async def publish(bus: tidings.Bus, number: int, rounds: int) -> None:
    """Publish one event of each kind in each round, at most a hundred rounds a second."""
    async with bus:
        print("ready", flush=True)
        for n in range(number * 1_000_000, number * 1_000_000 + rounds):
            events = (
                [Ordered1(n), Priced1(n, n)] if number == 1 else [Ordered2(n, "x"), Priced2(n, n * 100), Shipped2(n)]
            )
            await bus.publish_many(events)
            await asyncio.sleep(0.01)


def main(role: str, number: str, file: str, rounds: str = "0") -> None:
    bus = release(int(number), file)
    asyncio.run(work(bus) if role == "worker" else publish(bus, int(number), int(rounds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
