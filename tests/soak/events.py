"""The workload: operations with an id of their own, what their handlers write, and what follows from them.

The id (`op`) travels in the payload: the framework's own id would hide a message that was published twice. The table
of effects has no unique constraint, so that a double effect is seen and not prevented.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import tidings
from tidings.retry import RetryPolicy

from .history import History

Kind = Literal["plain", "flaky", "poison", "slow", "invalid"]
ATTEMPTS = 3

TABLES = """
CREATE TABLE IF NOT EXISTS effects (
    place INTEGER PRIMARY KEY AUTOINCREMENT, stage TEXT, op TEXT, key TEXT, number INTEGER, pid INTEGER
)
"""
INSERT = text("INSERT INTO effects (stage, op, key, number, pid) VALUES (:stage, :op, :key, :number, :pid)")


class Placed(tidings.Event, subject="events.soak.placed", key="key"):
    """One operation: the `number`th on its key, by one publisher, who waits for each before the next."""

    op: str
    key: str
    number: int
    kind: Kind


class Applied(tidings.Event, subject="events.soak.applied", key="key"):
    """What follows from an operation, if and only if its effect was committed."""

    op: str
    key: str
    number: int


def database(folder: Path) -> Path:
    return folder / "soak.sqlite3"


def make_tables(folder: Path) -> None:
    connection = sqlite3.connect(database(folder))
    with connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(TABLES)
    connection.close()


def make_bus(folder: Path, url: str, history: History) -> tidings.Bus:
    """The bus with all handlers, for workers and publishers alike."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{database(folder)}")
    bus = tidings.Bus("soak", url=url, sessions=async_sessionmaker(engine))
    retry = RetryPolicy(attempts=ATTEMPTS, first=0.1, most=0.5)

    async def take(db: AsyncSession, stage: str, event: Any, attempt: int) -> None:
        history.say("handle", "invoke", stage=stage, op=event.op, attempt=attempt)
        row = {"stage": stage, "op": event.op, "key": event.key, "number": event.number, "pid": os.getpid()}
        await db.execute(INSERT, row)

    @bus.on(Placed, group="apply", retry=retry)
    async def apply(placed: Placed, message: tidings.Message, db: AsyncSession) -> Applied:
        await take(db, "apply", placed, message.attempt)
        await misbehave(placed, message.attempt)
        return Applied(op=placed.op, key=placed.key, number=placed.number)

    @bus.on(Applied, group="follow", retry=retry)
    async def follow(applied: Applied, message: tidings.Message, db: AsyncSession) -> None:
        await take(db, "follow", applied, message.attempt)

    async def in_order(placed: Placed, message: tidings.Message, db: AsyncSession) -> None:
        await take(db, "ordered", placed, message.attempt)
        if placed.number % 25 == 2 and message.attempt == 1:
            raise ValueError(f"operation {placed.op} fails once, and later ones of its key must wait")

    bus.on(Placed, group="ordered", retry=retry, order=True, concurrency=8)(in_order)
    return bus


async def misbehave(placed: Placed, attempt: int) -> None:
    """As its kind says: fail at first, always, or take long. What was written before must then be gone."""
    if placed.kind == "poison" or (placed.kind == "flaky" and attempt == 1):
        raise ValueError(f"{placed.kind} operation {placed.op}")
    if placed.kind == "slow":
        await asyncio.sleep(1.0)
