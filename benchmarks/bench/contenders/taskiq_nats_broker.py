"""Taskiq with a pull consumer of NATS JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from nats.js.api import StreamConfig
from pydantic import BaseModel
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq_nats import PullBasedJetStreamBroker

from ..job import Body, Job
from ..writing import Writer
from . import Seen
from .cannot_ask import CannotAsk
from .nats_bare import connected


class Model(BaseModel):
    number: int
    sent: float
    text: str


def make(job: Job, seen: Seen, writer: Writer | None = None) -> tuple[PullBasedJetStreamBroker, Any]:
    broker = PullBasedJetStreamBroker(
        job.url, subject="bench", stream_name="bench", pull_consume_batch=256, pull_consume_timeout=5
    )

    @broker.task(task_name="nothing")
    async def nothing(body: Model) -> None:
        if writer is None:
            seen(body.sent)
        else:
            await writer.one(body)

    return broker, nothing


async def writing(job: Job, seen: Seen, stack: AsyncExitStack) -> Writer:
    """A writer whose follow-ups go to a stream of their own."""
    js = (await stack.enter_async_context(connected(job))).jetstream(timeout=60)
    await js.add_stream(StreamConfig(name="saved", subjects=["saved"]))

    async def emit(id: int, text: str) -> None:
        await js.publish("saved", msgspec.json.encode({"id": id, "text": text}))

    writer = Writer(job, seen, emit)
    await writer.prepare()
    return writer


async def receive(job: Job, seen: Seen, writer: Writer | None) -> None:
    broker, _ = make(job, seen, writer)
    broker.is_worker_process = True
    await run_receiver_task(broker, max_async_tasks=100, run_startup=True, ack_time=AcknowledgeType.WHEN_EXECUTED)


class TaskiqPublisher:
    def __init__(self, task: Any) -> None:
        self._task = task

    async def one(self, body: Body) -> None:
        await self._task.kiq(Model(number=body.number, sent=body.sent, text=body.text))

    async def many(self, bodies: list[Body]) -> None:
        await asyncio.gather(*(self.one(body) for body in bodies))


class Taskiq(CannotAsk):
    @asynccontextmanager
    async def publisher(self, job: Job) -> AsyncIterator[TaskiqPublisher]:
        broker, task = make(job, lambda _: None)
        await broker.startup()
        try:
            yield TaskiqPublisher(task)
        finally:
            await broker.shutdown()

    def work(self, job: Job, seen: Seen) -> None:
        async def main() -> None:
            async with AsyncExitStack() as stack:
                await receive(job, seen, await writing(job, seen, stack) if job.database else None)

        asyncio.run(main())


CONTENDER = Taskiq()
