"""What is really there at the end, read without the framework: plain nats-py, sqlite3, `/proc` and the histories."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import psutil
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from . import events, history

NAMESPACE = "tidings"
EVENTS, CONTROL = f"{NAMESPACE}-events", f"{NAMESPACE}-control"


@dataclass(frozen=True)
class Operation:
    """What a publisher set out to store."""

    op: str
    key: str
    number: int
    kind: str
    sha: str
    acknowledged: bool


@dataclass(frozen=True)
class Logged:
    """A message in the log."""

    subject: str
    op: str
    sha: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Dead:
    """A dead letter."""

    group: str
    op: str
    sha: str
    headers: Mapping[str, str]
    reason: str
    attempts: int


@dataclass(frozen=True)
class Effect:
    """A row that a handler wrote, in the order of the rows."""

    stage: str
    op: str
    key: str
    number: int


@dataclass(frozen=True)
class Truth:
    """Everything the checker may know."""

    operations: tuple[Operation, ...]
    log: tuple[Logged, ...]
    dead: tuple[Dead, ...]
    effects: tuple[Effect, ...]
    leftovers: tuple[str, ...] = ()
    """What should not be there any more: rows in the outbox, pending messages, processes, strange exit codes."""
    stages: tuple[str, ...] = field(default=("apply", "follow", "ordered"))


def operations(folder: Path) -> tuple[Operation, ...]:
    """From the histories of all publishers, killed ones too."""
    invoked: dict[str, dict[str, Any]] = {}
    acknowledged: set[str] = set()
    for line in history.read(folder / "history"):
        if line["f"] == "publish":
            if line["type"] == "invoke":
                invoked[line["op"]] = line
            elif line["type"] == "ok":
                acknowledged.add(line["op"])
    return tuple(
        Operation(op, line["key"], line["number"], line["kind"], line["sha"], op in acknowledged)
        for op, line in invoked.items()
    )


def effects(folder: Path) -> tuple[Effect, ...]:
    rows = query(folder, "SELECT stage, op, key, number FROM effects ORDER BY place")
    return tuple(Effect(*row) for row in rows)


def count_effects(folder: Path) -> int:
    return int(query(folder, "SELECT count(*) FROM effects")[0][0])


def outbox_rows(folder: Path) -> int:
    there = query(folder, "SELECT count(*) FROM sqlite_master WHERE name = 'tidings_outbox'")[0][0]
    return int(query(folder, "SELECT count(*) FROM tidings_outbox")[0][0]) if there else 0


def query(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(events.database(folder), timeout=10)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


async def log(client: Client) -> tuple[Logged, ...]:
    return tuple(
        [
            Logged(message.subject, *op_of(message.data), dict(message.headers or {}))
            async for message in dump(client, EVENTS)
        ]
    )


async def dead_letters(client: Client) -> tuple[Dead, ...]:
    """The last message on each subject of a dead letter, unless it is the mark of one that was taken away."""
    found = []
    async for message in dump(client, CONTROL, f"_t.{NAMESPACE}.dead.>", DeliverPolicy.LAST_PER_SUBJECT):
        headers = dict(message.headers or {})
        death = json.loads(headers.get("Tidings-Origin", "{}")).get("death")
        if death:
            group = message.subject.split(".")[3]
            found.append(Dead(group, *op_of(message.data), headers, death["reason"], death["attempts"]))
    return tuple(found)


async def dump(
    client: Client, stream: str, filter: str = ">", policy: DeliverPolicy = DeliverPolicy.ALL
) -> AsyncIterator[Any]:
    """All messages of a stream, by a consumer of our own that changes nothing for anybody."""
    jetstream = client.jetstream()
    config = ConsumerConfig(
        deliver_policy=policy, ack_policy=AckPolicy.NONE, filter_subject=filter, inactive_threshold=30.0
    )
    reader = await jetstream.pull_subscribe(filter, stream=stream, config=config)
    left = (await reader.consumer_info()).num_pending or 0
    while left:
        for message in await reader.fetch(min(left, 500), timeout=10):
            left -= 1
            yield message
    await reader.unsubscribe()


async def pending(client: Client) -> int:
    """Messages that some group has not settled yet, or has set aside."""
    groups = [
        consumer
        for stream in (EVENTS, CONTROL)
        for consumer in await client.jetstream().consumers_info(stream)
        if consumer.config.durable_name
    ]
    control = await client.jetstream().stream_info(CONTROL, subjects_filter=f"_t.{NAMESPACE}.park.>")
    parked = sum((control.state.subjects or {}).values())
    return parked + sum((group.num_pending or 0) + (group.num_ack_pending or 0) for group in groups)


def processes(mark: str) -> list[psutil.Process]:
    """The living processes that were started by a run: those with its mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("SOAK_RUN") == mark and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if ours and process.pid != os.getpid():
            found.append(process)
    return found


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


def op_of(body: bytes) -> tuple[str, str]:
    """The operation that a message is about, and a hash of its bytes."""
    return str(json.loads(body).get("op", "")), hashlib.sha256(body).hexdigest()
