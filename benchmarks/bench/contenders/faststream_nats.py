"""FastStream on NATS JetStream, one message or a batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from pydantic import BaseModel

from ..job import Body, Job
from ..writing import Writer
from . import Asker, Seen
from .nats_bare import DURABLE, STREAM, SUBJECT, connected, declare


class Model(BaseModel):
    number: int
    sent: float
    text: str


def model(body: Body) -> Model:
    return Model(number=body.number, sent=body.sent, text=body.text)


class FastStreamPublisher:
    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker

    async def one(self, body: Body) -> None:
        await self._broker.publish(model(body), SUBJECT, stream=STREAM, timeout=60)

    async def many(self, bodies: list[Body]) -> None:
        await asyncio.gather(*(self.one(body) for body in bodies))


class FastStreamNats:
    @asynccontextmanager
    async def publisher(self, job: Job) -> AsyncIterator[FastStreamPublisher]:
        async with connected(job) as connection:
            await declare(connection.jetstream())
        async with NatsBroker(job.url, logger=None) as broker:
            yield FastStreamPublisher(broker)

    def work(self, job: Job, seen: Seen) -> None:
        async def main() -> None:
            broker = NatsBroker(job.url, logger=None)
            batch = job.contender.endswith("-batch")
            subscriber = broker.subscriber(
                SUBJECT,
                stream=JStream(STREAM, declare=False),
                durable=DURABLE,
                pull_sub=PullSub(batch_size=256, batch=batch),
                max_workers=None if batch else 16,
                ack_policy=AckPolicy.NACK_ON_ERROR,
            )
            if job.database:

                async def emit(id: int, text: str) -> None:
                    await broker.publish({"id": id, "text": text}, "events.bench.saved", stream=STREAM)

                writer = Writer(job, seen, emit)
                await writer.prepare()
                subscriber(_write_many(writer) if batch else _write_one(writer))
            else:
                subscriber(_take_many(seen) if batch else _take_one(seen))
            await broker.start()
            await asyncio.Event().wait()

        asyncio.run(main())

    def serve(self, job: Job, ready: Callable[[], None]) -> None:
        async def main() -> None:
            broker = NatsBroker(job.url, logger=None)

            @broker.subscriber("bench.question", queue="bench")
            async def answer(question: Model) -> dict[str, int]:
                return {"number": question.number}

            await broker.start()
            ready()
            await asyncio.Event().wait()

        asyncio.run(main())

    @asynccontextmanager
    async def asker(self, job: Job) -> AsyncIterator[Asker]:
        async with NatsBroker(job.url, logger=None) as broker:

            async def ask(body: Body) -> None:
                reply = await broker.request(model(body), "bench.question", timeout=5)
                assert (await reply.decode())["number"] == body.number

            yield ask


def _take_one(seen: Seen) -> Callable[..., object]:
    async def nothing(body: Model) -> None:
        seen(body.sent)

    return nothing


def _take_many(seen: Seen) -> Callable[..., object]:
    async def nothing(batch: list[Model]) -> None:
        for body in batch:
            seen(body.sent)

    return nothing


def _write_one(writer: Writer) -> Callable[..., object]:
    async def write(body: Model) -> None:
        await writer.one(body)

    return write


def _write_many(writer: Writer) -> Callable[..., object]:
    async def write(batch: list[Model]) -> None:
        await writer.many(batch)

    return write


CONTENDER = FastStreamNats()
