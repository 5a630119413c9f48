"""What is really there, read without the framework: plain nats-py, plain SQL."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

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


async def read(client: Client, name: str, place: Place) -> Truth:
    """For when nothing moves any more."""
    effects = Counter(op for (op,) in await query(place, "SELECT op FROM effects"))
    events, ids = Counter[str](), Counter[str]()
    for message in await _dump(client, f"{name}-events", f"{name}.applied"):
        events[json.loads(message.data)["op"]] += 1
        ids[message.headers["ce-id"]] += 1
    dead = await _dump(client, f"{name}-control", f"_t.{name}.dead.>")
    return Truth(effects, events, ids, tuple(message.subject for message in dead if message.data))


async def pending(client: Client, name: str) -> int:
    """Messages that the group has not settled yet."""
    groups = [
        group
        for stream in (f"{name}-events", f"{name}-control")
        for group in await client.jetstream().consumers_info(stream)
        if group.config.durable_name
    ]
    return sum((group.num_pending or 0) + (group.num_ack_pending or 0) for group in groups)


async def outbox(place: Place) -> int:
    return int((await query(place, "SELECT count(*) FROM tidings_outbox"))[0][0])


async def _dump(client: Client, stream: str, filter: str) -> list[Any]:
    """All messages on a subject, by a consumer of our own that changes nothing for anybody."""
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, filter_subject=filter, inactive_threshold=30.0
    )
    reader = await client.jetstream().pull_subscribe(filter, stream=stream, config=config)
    found: list[Any] = []
    left = (await reader.consumer_info()).num_pending or 0
    while left:
        page = await reader.fetch(min(left, 500), timeout=10)
        left -= len(page)
        found += page
    await reader.unsubscribe()
    return found
