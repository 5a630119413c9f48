"""Tidings through its public API: an event class, a bus, one handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import tidings

from ..job import Body, Job
from . import Asker, Seen


class Nothing(tidings.Event, subject="events.bench.nothing"):
    number: int
    sent: float
    text: str


class Answer(tidings.Event, subject="bench.answered"):
    number: int


class Question(tidings.Request[Answer], subject="bench.question"):
    number: int
    text: str


def event(body: Body) -> Nothing:
    return Nothing(number=body.number, sent=body.sent, text=body.text)


class TidingsPublisher:
    def __init__(self, bus: tidings.Bus) -> None:
        self._bus = bus

    async def one(self, body: Body) -> None:
        await self._bus.publish(event(body))

    async def many(self, bodies: list[Body]) -> None:
        await self._bus.publish_many([event(body) for body in bodies])


def make_bus(job: Job, seen: Seen) -> tidings.Bus:
    if job.database:
        from .tidings_writing import writing_bus  # SQLAlchemy is for those who write

        return writing_bus(job, seen)
    bus = tidings.Bus("bench", url=f"{job.url}/bench")
    if job.contender.endswith("-batch"):

        @bus.on(Nothing, group="nothing")
        async def many(batch: tidings.Batch[Nothing]) -> None:
            for event in batch:
                seen(event.sent)

    else:

        @bus.on(Nothing, group="nothing")
        async def nothing(event: Nothing) -> None:
            seen(event.sent)

    for number in range(job.other_groups):

        @bus.on(f"events.other.n{number}", group=f"other-{number}")
        async def other(message: tidings.Message) -> None:
            raise RuntimeError("nobody publishes this")

    return bus


class TidingsContender:
    @asynccontextmanager
    async def publisher(self, job: Job) -> AsyncIterator[TidingsPublisher]:
        async with make_bus(job, lambda _: None) as bus:
            yield TidingsPublisher(bus)

    def work(self, job: Job, seen: Seen) -> None:
        async def main() -> None:
            async with make_bus(job, seen) as bus:
                await bus.work()
                await asyncio.Event().wait()

        asyncio.run(main())

    def serve(self, job: Job, ready: Callable[[], None]) -> None:
        async def main() -> None:
            async with tidings.Bus("bench", url=f"{job.url}/bench") as bus:

                @bus.reply(Question)
                async def answer(question: Question) -> Answer:
                    return Answer(number=question.number)

                await bus.work()
                ready()
                await asyncio.Event().wait()

        asyncio.run(main())

    @asynccontextmanager
    async def asker(self, job: Job) -> AsyncIterator[Asker]:
        async with tidings.Bus("bench-asker", url=f"{job.url}/bench") as bus:

            async def ask(body: Body) -> None:
                answer = await bus.request(Question(number=body.number, text=body.text))
                assert answer.number == body.number

            yield ask


CONTENDER = TidingsContender()
