"""What a Redis or Valkey really holds, read without the framework: plain redis-py, keys as docs/redis.md names them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis

PAGE = 500
LISTS = ("ready", "leased", "delayed", "parked")
"""Of a group: the sorted sets of positions it has still something to do with."""


@dataclass(frozen=True)
class Entry:
    """A message in the log."""

    subject: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Letter:
    """A dead letter."""

    group: str
    headers: Mapping[str, str]
    body: bytes
    reason: str
    attempts: int


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5)
    try:
        yield client
    finally:
        await client.aclose()


async def log(client: Redis, namespace: str) -> tuple[Entry, ...]:
    found: list[Entry] = []
    after = "-"
    while page := await client.xrange(f"{{{namespace}}}:log", after, "+", PAGE):
        found += [Entry(fields[b"s"].decode(), json.loads(fields[b"h"]), fields[b"b"]) for _, fields in page]
        after = "(" + page[-1][0].decode()
    return tuple(found)


async def letters(client: Redis, namespace: str) -> tuple[Letter, ...]:
    found: list[Letter] = []
    for group in await groups(client, namespace):
        for packed in (await client.hgetall(f"{{{namespace}}}:g:{group}:letters")).values():
            _, _, headers, body, _, reason, _, attempts, *_ = unpacked(packed)
            found.append(Letter(group, json.loads(headers), body.encode(), reason, attempts))
    return tuple(found)


async def pending(client: Redis, namespace: str) -> int:
    """Messages that some group has not settled yet or has set aside, and those that wait for their time."""
    count = int(await client.zcard(f"{{{namespace}}}:later"))
    for group in await groups(client, namespace):
        count += await client.xlen(f"{{{namespace}}}:g:{group}:fresh")
        for name in LISTS:
            count += await client.zcard(f"{{{namespace}}}:g:{group}:{name}")
    return count


async def groups(client: Redis, namespace: str) -> list[str]:
    return sorted(name.decode() for name in await client.smembers(f"{{{namespace}}}:groups"))


def unpacked(packed: bytes) -> list[Any]:
    """What a function has packed with cmsgpack; texts of UTF-8 only."""
    return msgspec.msgpack.decode(packed, type=list[Any])
