"""Questions of all kinds at once to one process, over a real NATS server."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import tidings
from nats_server import NatsServer
from tidings.message import current_message
from tidings.settings import Settings

pytest_plugins = ("on_nats",)

QUICK, WAITS, RAISES, CANCELS, HANGS, LEFT = "quick", "waits", "raises", "cancels", "hangs", "left"


class Given(int):
    """What the provider makes."""


class Question(tidings.Request[int], subject="kinds.question"):
    number: int
    kind: str


class After(tidings.Request[bool], subject="kinds.after"):
    pass


def responding(server: NatsServer, open: set[Given], release: asyncio.Event, limit: float) -> tidings.Bus:
    bus = tidings.Bus("kinds", settings=Settings(url=server.url))
    numbers = itertools.count()

    @bus.provide
    async def given() -> AsyncIterator[Given]:
        made = Given(next(numbers))
        open.add(made)
        try:
            yield made
        finally:
            open.discard(made)

    @bus.reply(Question, timeout=limit)
    async def answer(question: Question, message: tidings.Message, given: Given) -> int:
        task = asyncio.current_task()
        assert task is not None
        assert current_message.get() is message
        match question.kind:
            case "waits":
                await asyncio.sleep(0)
                await asyncio.sleep(question.number % 3 / 100)
            case "raises":
                raise LookupError(f"none of {question.number}")
            case "cancels":
                task.cancel()
                await asyncio.sleep(0)
            case "hangs":
                await asyncio.Event().wait()
            case "left":
                await release.wait()
        assert current_message.get() is message
        return question.number

    @bus.reply(After)
    async def after(_: After) -> bool:
        return True

    return bus


async def test_each_question_gets_its_own_end(server: NatsServer) -> None:
    """Quick and slow questions, some whose handler raises, hangs, or cancels its own task, and some whose asker goes
    away: each gets its own answer or its own error, what providers gave is closed, and the process answers on."""
    open: set[Given] = set()
    kinds = [kind for kind in (QUICK, WAITS, RAISES, CANCELS, HANGS, LEFT) for _ in range(40)]
    random.Random(7).shuffle(kinds)
    async with responding(server, open, asyncio.Event(), 2.0) as bus, asyncio.timeout(60):
        await bus.work()
        asked = [
            asyncio.create_task(bus.request(Question(number=number, kind=kind), timeout=30))
            for number, kind in enumerate(kinds)
        ]
        while not open:
            await asyncio.sleep(0)
        for task, kind in zip(asked, kinds, strict=True):
            if kind == LEFT:
                task.cancel()
        ends: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        for number, (end, kind) in enumerate(zip(ends, kinds, strict=True)):
            match kind:
                case "quick" | "waits":
                    assert end == number
                case "raises":
                    assert (end.type, end.message) == ("LookupError", f"none of {number}")
                case "cancels":
                    assert end.type == "CancelledError"
                case "hangs":
                    assert "still running after 2 s" in end.message
                case _:
                    assert isinstance(end, asyncio.CancelledError)
        assert await bus.request(After())
    assert open == set()


async def test_leaving_waits_for_answers_that_were_begun(server: NatsServer) -> None:
    """A process that stops answers what it has taken, quick and slow, before it is gone."""
    open: set[Given] = set()
    release = asyncio.Event()
    responder = responding(server, open, release, 30)
    async with tidings.Bus("asker", settings=Settings(url=server.url)) as asker, asyncio.timeout(30):
        async with responder:
            await responder.work()
            assert await asker.request(Question(number=0, kind=QUICK), timeout=10) == 0
            asked = [
                asyncio.create_task(asker.request(Question(number=number, kind=LEFT), timeout=20))
                for number in range(20)
            ]
            while len(open) < 20:
                await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.05, release.set)
        assert await asyncio.gather(*asked) == list(range(20))
