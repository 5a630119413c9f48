"""Everyone who is measured, behind one small protocol. The modules are imported in child processes only."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from ..job import Body, Job

Seen = Callable[[float], None]
Asker = Callable[[Body], Awaitable[None]]


class Publisher(Protocol):
    async def one(self, body: Body) -> None:
        """Store one message; returns when the broker has said so."""

    async def many(self, bodies: list[Body]) -> None:
        """Store many, in the quickest way it has for that."""


class Contender(Protocol):
    """What a contender's module has in its `CONTENDER`; those that cannot ask raise `NotImplementedError`."""

    def publisher(self, job: Job) -> AbstractAsyncContextManager[Publisher]:
        """Connected, and with everything declared that the worker needs to find what is published."""

    def work(self, job: Job, seen: Seen) -> None:
        """Handle messages, calling `seen` from the handler, until the process is killed."""

    def serve(self, job: Job, ready: Callable[[], None]) -> None:
        """Answer requests until the process is killed."""

    def asker(self, job: Job) -> AbstractAsyncContextManager[Asker]:
        """Connected, and ready to ask."""


@dataclass(frozen=True)
class About:
    """What is printed about a contender, so that nobody compares promises unawares."""

    title: str
    module: str
    broker: str
    packages: tuple[str, ...]
    promise: str
    settings: str


_NATS_SETTINGS = "durable consumer, explicit acks, R1, file storage"

ABOUT = {
    "tidings": About(
        "Tidings",
        "tidings_bus",
        "nats",
        ("tidings", "nats-py"),
        "at least once; retries, dead letters, order and dedup headers, leases renewed, typed body",
        "one async handler that takes an Event class; the defaults of Bus",
    ),
    "tidings-batch": About(
        "Tidings, batch",
        "tidings_bus",
        "nats",
        ("tidings", "nats-py"),
        "as Tidings, with an outcome for each message of the batch",
        "one async handler that takes a Batch; the defaults of Bus (256)",
    ),
    "tidings-redis": About(
        "Tidings on Valkey",
        "tidings_bus",
        "valkey",
        ("tidings", "redis"),
        "as Tidings; every step is one function in the server",
        "as Tidings",
    ),
    "tidings-redis-batch": About(
        "Tidings on Valkey, batch",
        "tidings_bus",
        "valkey",
        ("tidings", "redis"),
        "as Tidings on Valkey, with an outcome for each message of the batch",
        "one async handler that takes a Batch; the defaults of Bus (256)",
    ),
    "nats-callback": About(
        "bare nats-py, callback pull loop",
        "nats_callback",
        "nats",
        ("nats-py",),
        "at least once; headers parsed, body decoded into a Struct; no retry policy, no dead letters",
        f"{_NATS_SETTINGS}; 512 per pull, the next pull sent when half has come, ack per message",
    ),
    "nats-fetch": About(
        "bare nats-py, fetch loop",
        "nats_fetch",
        "nats",
        ("nats-py",),
        "at least once; headers parsed, body decoded into a Struct; no retry policy, no dead letters",
        f"{_NATS_SETTINGS}; fetch(512), ack per message",
    ),
    "nats-by-hand": About(
        "by hand: nats-py and SQLAlchemy",
        "nats_by_hand",
        "nats",
        ("nats-py", "sqlalchemy"),
        "at least once, once in the database (inbox); no retries, no dead letters, no outbox",
        f"{_NATS_SETTINGS}; fetch(256), one session and one commit for them, ack per message",
    ),
    "faststream-nats": About(
        "FastStream NATS",
        "faststream_nats",
        "nats",
        ("faststream", "nats-py"),
        "at least once (NACK_ON_ERROR); Pydantic body; no retry policy, no dead letters",
        "PullSub(batch_size=256), max_workers=16",
    ),
    "faststream-nats-batch": About(
        "FastStream NATS, batch",
        "faststream_nats",
        "nats",
        ("faststream", "nats-py"),
        "at least once for the batch as a whole; Pydantic bodies",
        "PullSub(batch_size=256, batch=True)",
    ),
    "faststream-redis": About(
        "FastStream Redis",
        "faststream_redis",
        "valkey",
        ("faststream", "redis"),
        "at least once only with a second subscriber that claims what dead workers had; Pydantic body",
        "StreamSub(group, max_records=256), max_workers=16, ack after the handler",
    ),
    "faststream-redis-batch": About(
        "FastStream Redis, batch",
        "faststream_redis",
        "valkey",
        ("faststream", "redis"),
        "as FastStream Redis, for the batch as a whole",
        "StreamSub(group, max_records=256, batch=True)",
    ),
    "taskiq-nats": About(
        "Taskiq NATS",
        "taskiq_nats_broker",
        "nats",
        ("taskiq", "taskiq-nats", "nats-py"),
        "at least once (ack when executed); Pydantic argument",
        "PullBasedJetStreamBroker, 256 per pull (5 s), 100 tasks at a time",
    ),
    "celery-redis": About(
        "Celery Redis",
        "celery_redis",
        "valkey",
        ("celery", "kombu", "redis"),
        "at least once (acks_late, visibility timeout of an hour); plain arguments",
        "8 threads, no results, no gossip, mingle or heartbeat",
    ),
    "dramatiq-redis": About(
        "Dramatiq Redis",
        "dramatiq_redis",
        "valkey",
        ("dramatiq", "redis"),
        "at least once, with retries; plain arguments",
        "8 threads, the default middleware",
    ),
}


MEASURED_IDLE = [name for name in ABOUT if name != "nats-by-hand"]
"""Those that have a handler which does nothing."""


def load(name: str) -> Contender:
    module = importlib.import_module(f".{ABOUT[name].module}", __name__)
    contender: Contender = module.CONTENDER
    return contender
