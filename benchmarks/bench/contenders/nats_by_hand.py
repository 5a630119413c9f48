"""What a careful programmer writes without a framework: a fetch loop, and one transaction for what it got."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingYet
from nats.js import JetStreamContext
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from ..job import Body, Job
from ..writing import prepare, row, sessions, write_many
from . import Seen
from .nats_bare import DECODER, DURABLE, STREAM, Bare, connected, headers

_TABLES = (
    "CREATE TABLE bench_inbox (id varchar(64) PRIMARY KEY)",
    "CREATE TABLE bench_outbox (id varchar(64) PRIMARY KEY, body text NOT NULL)",
)
_MARK = text("INSERT INTO bench_inbox (id) VALUES (:id) ON CONFLICT DO NOTHING")
_STAGE = text("INSERT INTO bench_outbox (id, body) VALUES (:id, :body)")
_SENT = text("DELETE FROM bench_outbox WHERE id = :id")


class Loop:
    """Fetch, mark, write, commit, acknowledge, publish what follows."""

    def __init__(self, job: Job, js: JetStreamContext, made: async_sessionmaker[AsyncSession], seen: Seen) -> None:
        self._writes = job.writes
        self._js = js
        self._sessions = made
        self._seen = seen

    async def run(self) -> None:
        subscription = await self._js.pull_subscribe_bind(DURABLE, STREAM)
        while True:
            try:
                messages = await subscription.fetch(256, timeout=5)
            except NothingYet:
                continue
            bodies = [DECODER.decode(message.data) for message in messages]
            staged = await self._transact(messages, bodies)
            for message, body in zip(messages, bodies, strict=True):
                await message.ack()
                self._seen(body.sent)
            if staged:
                await self._send(staged)

    async def _transact(self, messages: list[Msg], bodies: list[Body]) -> list[dict[str, Any]]:
        ids = [{"id": (message.headers or {})["ce-id"]} for message in messages]
        async with self._sessions() as session:
            await session.execute(_MARK, ids)
            staged: list[dict[str, Any]] = []
            if self._writes == "batch":
                await write_many(session, bodies)
            else:
                rows = [row(body) for body in bodies]
                session.add_all(rows)
                if self._writes == "save":
                    await session.flush()
                    staged = [
                        {**id, "body": msgspec.json.encode({"id": saved.id, "text": saved.text}).decode()}
                        for id, saved in zip(ids, rows, strict=True)
                    ]
                    await session.execute(_STAGE, staged)
            await session.commit()
        return staged

    async def _send(self, staged: list[dict[str, Any]]) -> None:
        await asyncio.gather(
            *(self._js.publish("events.bench.saved", one["body"].encode(), headers=headers()) for one in staged)
        )
        async with self._sessions() as session:
            await session.execute(_SENT, [{"id": one["id"]} for one in staged])
            await session.commit()


class ByHand(Bare):
    def work(self, job: Job, seen: Seen) -> None:
        async def main() -> None:
            made = sessions(job)
            await prepare(made)
            async with made() as session:
                for table in _TABLES:
                    await session.execute(text(table))
                await session.commit()
            async with connected(job) as connection:
                await Loop(job, connection.jetstream(timeout=60), made, seen).run()

        asyncio.run(main())


CONTENDER = ByHand()
