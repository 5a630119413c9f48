"""Dramatiq with Redis, its worker in threads."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from ..job import Body, Job
from . import Seen
from .cannot_ask import CannotAsk


def make(job: Job, seen: Seen) -> tuple[RedisBroker, Any]:
    broker = RedisBroker(url=job.url)

    @dramatiq.actor(broker=broker, actor_name="nothing")
    def nothing(number: int, sent: float, text: str) -> None:
        seen(sent)

    return broker, nothing


class DramatiqPublisher:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def one(self, body: Body) -> None:
        self._actor.send(body.number, body.sent, body.text)

    async def many(self, bodies: list[Body]) -> None:
        for body in bodies:
            await self.one(body)


class DramatiqRedis(CannotAsk):
    @asynccontextmanager
    async def publisher(self, job: Job) -> AsyncIterator[DramatiqPublisher]:
        _, actor = make(job, lambda _: None)
        yield DramatiqPublisher(actor)

    def work(self, job: Job, seen: Seen) -> None:
        broker, _ = make(job, seen)
        dramatiq.Worker(broker, worker_threads=8).start()
        signal.pause()


CONTENDER = DramatiqRedis()
