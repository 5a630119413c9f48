"""What is really there, read without the framework: plain nats-py or redis-py, plain SQL."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from redis.asyncio import Redis
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

import redis_truth

if TYPE_CHECKING:
    from database_servers import Place


@dataclass(frozen=True)
class Truth:
    """How often each operation is where it can be."""

    effects: Counter[str]
    events: Counter[str]
    """By operation: the messages in the log that follow from it."""
    ids: Counter[str]
    """The same by the message's own id."""
    dead: tuple[str, ...]


async def query(place: Place, statement: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(_query, place, statement)


def _query(place: Place, statement: str) -> list[tuple[Any, ...]]:
    engine = create_engine(place.sync_url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result.all()] if result.returns_rows else []


class Log(Protocol):
    """What a broker holds in a namespace."""

    async def applied(self, name: str) -> list[tuple[str, str]]:
        """Operation and id of every message that follows from an operation."""
        ...

    async def dead(self, name: str) -> tuple[str, ...]:
        """A word on each dead letter."""
        ...

    async def pending(self, name: str) -> int:
        """Messages that the group has not settled yet."""
        ...


class NatsLog:
    """On nats-server, by a user who may see everything."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def applied(self, name: str) -> list[tuple[str, str]]:
        messages = await self._dump(f"{name}-events", f"{name}.applied")
        return [(json.loads(message.data)["op"], message.headers["ce-id"]) for message in messages]

    async def dead(self, name: str) -> tuple[str, ...]:
        messages = await self._dump(f"{name}-control", f"_t.{name}.dead.>")
        return tuple(message.subject for message in messages if message.data)

    async def pending(self, name: str) -> int:
        groups = [
            group
            for stream in (f"{name}-events", f"{name}-control")
            for group in await self._client.jetstream().consumers_info(stream)
            if group.config.durable_name
        ]
        return sum((group.num_pending or 0) + (group.num_ack_pending or 0) for group in groups)

    async def _dump(self, stream: str, filter: str) -> list[Any]:
        """All messages on a subject, by a consumer of our own that changes nothing for anybody."""
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, filter_subject=filter, inactive_threshold=30.0
        )
        reader = await self._client.jetstream().pull_subscribe(filter, stream=stream, config=config)
        found: list[Any] = []
        left = (await reader.consumer_info()).num_pending or 0
        while left:
            page = await reader.fetch(min(left, 500), timeout=10)
            left -= len(page)
            found += page
        await reader.unsubscribe()
        return found


class RedisLog:
    """On Valkey."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def applied(self, name: str) -> list[tuple[str, str]]:
        entries = await redis_truth.log(self._client, name)
        return [
            (json.loads(entry.body)["op"], entry.headers["ce-id"])
            for entry in entries
            if entry.subject == f"{name}.applied"
        ]

    async def dead(self, name: str) -> tuple[str, ...]:
        letters = await redis_truth.letters(self._client, name)
        return tuple(f"{letter.reason} in {letter.group}: {letter.body!r}" for letter in letters)

    async def pending(self, name: str) -> int:
        return await redis_truth.pending(self._client, name)


async def read(log: Log, name: str, place: Place) -> Truth:
    """For when nothing moves any more."""
    effects = Counter(op for (op,) in await query(place, "SELECT op FROM effects"))
    applied = await log.applied(name)
    return Truth(effects, Counter(op for op, _ in applied), Counter(id for _, id in applied), await log.dead(name))


async def outbox(place: Place) -> int:
    return int((await query(place, "SELECT count(*) FROM tidings_outbox"))[0][0])
