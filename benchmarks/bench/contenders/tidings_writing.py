"""Tidings with handlers that write a row for each message."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

import tidings
from tidings.sql import Migrations

from ..job import Job
from ..writing import Once, is_poison, prepare, refused_row, row, sessions, write_many
from . import Seen
from .tidings_bus import Nothing


class Written(tidings.Event, subject="events.bench.saved"):
    id: int
    text: str


def writing_bus(job: Job, seen: Seen) -> tidings.Bus:
    made = sessions(job)
    bus = tidings.Bus("bench", url=f"{job.url}/bench", sessions=made)

    @bus.on_start
    async def tables() -> None:
        await prepare(made)
        await Migrations(job.database).upgrade()

    if job.writes == "batch":

        @bus.on(Nothing, group="nothing")
        async def many(batch: tidings.Batch[Nothing], db: AsyncSession) -> None:
            await write_many(db, list(batch))
            for event in batch:
                seen(event.sent)

    elif job.poison:
        once = Once(seen)

        @bus.on(Nothing, group="nothing")
        async def save_or_fail(event: Nothing, message: tidings.Message, db: AsyncSession) -> Written:
            bad = is_poison(event, job)
            saved = refused_row() if bad and job.poison == "refused" else row(event)
            db.add(saved)
            await db.flush()
            if bad and job.poison == "raises":
                raise ValueError("poison")
            once(message.position, event.sent)
            return Written(id=saved.id, text=saved.text)

    elif job.writes == "save":

        @bus.on(Nothing, group="nothing")
        async def save(event: Nothing, db: AsyncSession) -> Written:
            saved = row(event)
            db.add(saved)
            await db.flush()
            seen(event.sent)
            return Written(id=saved.id, text=saved.text)

    else:

        @bus.on(Nothing, group="nothing")
        async def add(event: Nothing, db: AsyncSession) -> None:
            db.add(row(event))
            seen(event.sent)

    return bus
