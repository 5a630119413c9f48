"""Celery with Redis lists, its worker in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery

from ..job import Body, Job
from . import Seen
from .cannot_ask import CannotAsk


def make(job: Job, seen: Seen) -> tuple[Celery, Any]:
    app = Celery("bench", broker=job.url)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        worker_redirect_stdouts=False,  # the meter reports there
    )

    @app.task(name="nothing")
    def nothing(number: int, sent: float, text: str) -> None:
        seen(sent)

    return app, nothing


class CeleryPublisher:
    def __init__(self, task: Any) -> None:
        self._task = task

    async def one(self, body: Body) -> None:
        self._task.delay(body.number, body.sent, body.text)

    async def many(self, bodies: list[Body]) -> None:
        for body in bodies:
            await self.one(body)


class CeleryRedis(CannotAsk):
    @asynccontextmanager
    async def publisher(self, job: Job) -> AsyncIterator[CeleryPublisher]:
        _, task = make(job, lambda _: None)
        yield CeleryPublisher(task)

    def work(self, job: Job, seen: Seen) -> None:
        app, _ = make(job, seen)
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
        app.worker_main(["worker", "--pool=threads", "--concurrency=8", *quiet])


CONTENDER = CeleryRedis()
