"""FastStream on Redis Streams, one message or a batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import redis.asyncio
from faststream import AckPolicy
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel
from redis.exceptions import ResponseError

from ..job import Body, Job
from ..writing import Writer
from . import Seen
from .cannot_ask import CannotAsk

STREAM, GROUP = "bench", "nothing"


class Model(BaseModel):
    number: int
    sent: float
    text: str


class FastStreamPublisher:
    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker

    async def one(self, body: Body) -> None:
        await self._broker.publish(Model(number=body.number, sent=body.sent, text=body.text), stream=STREAM)

    async def many(self, bodies: list[Body]) -> None:
        for begin in range(0, len(bodies), 64):  # each publish under way takes a connection of the pool
            await asyncio.gather(*(self.one(body) for body in bodies[begin : begin + 64]))


class FastStreamRedis(CannotAsk):
    @asynccontextmanager
    async def publisher(self, job: Job) -> AsyncIterator[FastStreamPublisher]:
        async with redis.asyncio.from_url(job.url) as client:
            with suppress(ResponseError):  # it exists
                await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        async with RedisBroker(job.url, logger=None) as broker:
            yield FastStreamPublisher(broker)

    def work(self, job: Job, seen: Seen) -> None:
        async def main() -> None:
            broker = RedisBroker(job.url, logger=None)
            batch = job.contender.endswith("-batch")
            subscriber = broker.subscriber(
                stream=StreamSub(STREAM, group=GROUP, consumer="bench", max_records=256, batch=batch),
                max_workers=None if batch else 16,
                ack_policy=AckPolicy.NACK_ON_ERROR,
            )
            if job.database:

                async def emit(id: int, text: str) -> None:
                    await broker.publish({"id": id, "text": text}, stream="saved")

                writer = Writer(job, seen, emit)
                await writer.prepare()
                subscriber(_write_many(writer) if batch else _write_one(writer))
            else:
                subscriber(_take_many(seen) if batch else _take_one(seen))
            await broker.start()
            await asyncio.Event().wait()

        asyncio.run(main())


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


CONTENDER = FastStreamRedis()
