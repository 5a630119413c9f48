"""Taskiq with a pull consumer of NATS JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq_nats import PullBasedJetStreamBroker

from ..job import Body, Job
from . import Seen
from .cannot_ask import CannotAsk


class Model(BaseModel):
    number: int
    sent: float
    text: str


def make(job: Job, seen: Seen) -> tuple[PullBasedJetStreamBroker, Any]:
    broker = PullBasedJetStreamBroker(
        job.url, subject="bench", stream_name="bench", pull_consume_batch=256, pull_consume_timeout=5
    )

    @broker.task(task_name="nothing")
    async def nothing(body: Model) -> None:
        seen(body.sent)

    return broker, nothing


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
            broker, _ = make(job, seen)
            broker.is_worker_process = True
            await run_receiver_task(
                broker, max_async_tasks=100, run_startup=True, ack_time=AcknowledgeType.WHEN_EXECUTED
            )

        asyncio.run(main())


CONTENDER = Taskiq()
