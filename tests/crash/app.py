"""The application that is killed: it writes one row for each operation and publishes one event for each row.

Neither table has a unique constraint: what happens twice is seen, and not prevented. An operation's name travels in the
payload, so that the framework's own ids hide nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import tidings
from soak import defects
from tidings import failpoints
from tidings.cli.running import work
from tidings.logs import configure
from tidings.settings import Settings

Kind = Literal["handler", "each handler", "def handler", "batch handler", "route", "def route"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEASE = 1.5


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """What an operation has done."""

    __tablename__ = "effects"

    place: Mapped[int] = mapped_column(primary_key=True)
    op: Mapped[str]


class Job(msgspec.Struct, frozen=True):
    """What one process is to be."""

    kind: Kind
    name: str
    """Of its namespace, and the first word of its subjects."""
    broker: str
    database: str
    sync_database: str
    socket: str
    """Where its routes answer."""
    log: str
    failpoint: str = ""
    defect: str = ""
    """What is broken in it, so that the checker has something to find."""


class Application:
    """The bus of one job, with the handlers of its kind."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.sessions = async_sessionmaker(create_async_engine(job.database))
        self.sync_sessions = sessionmaker(create_engine(job.sync_database))
        plain = job.kind.startswith("def")
        self.bus = tidings.Bus(
            "crash",
            roots=[f"{job.name}.>"],
            settings=_settings(job),
            **{"sync_sessions": self.sync_sessions} if plain else {"sessions": self.sessions},
        )
        self.placed, self.applied = _events(job.name)
        if job.kind.endswith("handler"):
            handlers = {"def handler": self._plain(), "batch handler": self._batch()}
            options: Any = {"commit": "each"} if job.kind == "each handler" else {}
            self.bus.on(self.placed, group="apply", **options)(handlers.get(job.kind, self._one()))

    def _one(self) -> Any:
        async def apply(message: tidings.Message, db: AsyncSession) -> Any:
            row = Effect(op=message.data.op)
            db.add(row)
            await db.flush()
            assert row.place
            return self._follow_up(row.op)

        return apply

    def _plain(self) -> Any:
        def apply(message: tidings.Message, db: Session) -> Any:
            db.add(Effect(op=message.data.op))
            return self._follow_up(message.data.op)

        return apply

    def _batch(self) -> Any:
        async def apply(batch: tidings.Batch[Any], db: AsyncSession) -> None:
            ops = [placed.op for placed in batch]
            await db.execute(insert(Effect), [{"op": op} for op in ops])
            for index, op in enumerate(ops):
                batch.follow(index, self._follow_up(op))

        return apply

    def _follow_up(self, op: str) -> Any:
        return self.applied(op=op, key=op[-1])

    def web(self) -> FastAPI:
        """The routes: each writes the row and publishes the event in one transaction."""
        app = FastAPI(lifespan=self.bus.lifespan)

        @app.post("/route/{op}")
        async def route(op: str) -> None:
            async with self.sessions() as db, db.begin():
                db.add(Effect(op=op))
                await self.bus.outbox(db).publish(self._follow_up(op))

        @app.post("/def route/{op}")
        def def_route(op: str) -> None:
            with self.sync_sessions() as db, db.begin():
                db.add(Effect(op=op))
                self.bus.outbox(db).publish_sync(self._follow_up(op))

        return app


def publisher(job: Job) -> tidings.Bus:
    """A bus that only publishes."""
    return tidings.Bus("client", roots=[f"{job.name}.>"], settings=_settings(job))


def _settings(job: Job) -> Settings:
    return Settings(url=job.broker, namespace=job.name, lease=LEASE, grace=5.0)


def _events(name: str) -> tuple[Any, Any]:
    class Placed(tidings.Event, subject=f"{name}.placed"):
        op: str

    class Applied(tidings.Event, subject=f"{name}.applied", key="key"):
        op: str
        key: str

    return Placed, Applied


def make_table(job: Job) -> None:
    """In a new database."""
    engine = create_engine(job.sync_database)
    Base.metadata.create_all(engine)
    engine.dispose()


def live(job: Job) -> None:
    """Be that process until SIGTERM, or until the failpoint."""
    failpoints.arm(job.failpoint)
    if job.defect:
        defects.DEFECTS[job.defect](defects.Crash(Path(job.log), 0))
    configure("info")
    application = Application(job)
    if job.kind.endswith("handler"):
        asyncio.run(work(application.bus))
    else:
        config = uvicorn.Config(application.web(), uds=job.socket, lifespan="on", log_config=None)
        uvicorn.Server(config).run()
