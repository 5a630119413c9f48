"""What both bare nats-py loops share: stream, consumer, headers, publisher, requests."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from ..job import Body, Job
from . import Asker

STREAM, SUBJECT, DURABLE = "bench", "events.bench.nothing", "nothing"
ENCODER = msgspec.json.Encoder()
DECODER = msgspec.json.Decoder(Body)


async def declare(js: JetStreamContext, other_groups: int = 0) -> None:
    """The stream and its consumers; idempotent."""
    await js.add_stream(StreamConfig(name=STREAM, subjects=["events.>"]))
    wishes = {DURABLE: SUBJECT} | {f"other-{n}": f"events.other.n{n}" for n in range(other_groups)}
    for durable, subject in wishes.items():
        config = ConsumerConfig(
            durable_name=durable, filter_subject=subject, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=20_000
        )
        await js.add_consumer(STREAM, config)


def headers() -> dict[str, str]:
    """As many as a framework's message has, so that the loops parse what they would have to parse."""
    id = uuid.uuid4().hex
    return {
        "Nats-Msg-Id": id,
        "ce-specversion": "1.0",
        "ce-id": id,
        "ce-type": SUBJECT,
        "ce-source": "bench",
        "ce-time": "2026-01-01T00:00:00.000000Z",
        "correlation-id": id,
    }


class BarePublisher:
    def __init__(self, js: JetStreamContext) -> None:
        self._js = js

    async def one(self, body: Body) -> None:
        await self._js.publish(SUBJECT, ENCODER.encode(body), headers=headers(), timeout=60)

    async def many(self, bodies: list[Body]) -> None:
        await asyncio.gather(*(self.one(body) for body in bodies))


@asynccontextmanager
async def connected(job: Job) -> AsyncIterator[Client]:
    connection = await nats.connect(job.url, max_outstanding_pings=10)
    try:
        yield connection
    finally:
        await connection.close()


class Bare:
    """All but `work`."""

    @asynccontextmanager
    async def publisher(self, job: Job) -> AsyncIterator[BarePublisher]:
        async with connected(job) as connection:
            js = connection.jetstream(timeout=60)
            await declare(js, job.other_groups)
            yield BarePublisher(js)

    def serve(self, job: Job, ready: Callable[[], None]) -> None:
        async def main() -> None:
            async with connected(job) as connection:

                async def answer(message: Msg) -> None:
                    question = DECODER.decode(message.data)
                    await message.respond(ENCODER.encode({"number": question.number}))

                await connection.subscribe("bench.question", queue="bench", cb=answer)
                await connection.flush()
                ready()
                await asyncio.Event().wait()

        asyncio.run(main())

    @asynccontextmanager
    async def asker(self, job: Job) -> AsyncIterator[Asker]:
        async with connected(job) as connection:

            async def ask(body: Body) -> None:
                reply = await connection.request("bench.question", ENCODER.encode(body), timeout=5)
                assert msgspec.json.decode(reply.data)["number"] == body.number

            yield ask
