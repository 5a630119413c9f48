"""The handlers of the reference application, each alone and together on the memory engine."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import PIPE
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text

from tidings.engine import Outgoing
from tidings.sql import Migrations
from tidings.testing import TestBus
from todo_app import Todo, todo

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


async def rows(app: Todo) -> list[tuple[int, str]]:
    async with app.database.async_session() as db:
        found = await db.scalars(select(app.database.Item).order_by(app.database.Item.id))
        return [(row.id, row.item) for row in found]


async def test_an_item_is_saved_and_told(tmp_path: Path) -> None:
    """A new item becomes a row, and `itemsaved` with the row's id follows, caused by it."""
    async with todo(tmp_path) as app, TestBus(app.bus) as t:
        receipt = await app.bus.publish(app.events.NewItem(item="milk"))
        await t.settle()
        [saved] = await t.published("events.todo.itemsaved")
        assert await rows(app) == [(1, "milk")]
        assert (saved.data.id, saved.data.item) == (1, "milk")
        assert saved.correlation_id == saved.causation_id == receipt.id


async def test_the_log_says_what_the_original_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Save, audit and mutation write the lines by which the original's exercises are followed, and the item."""
    caplog.set_level(logging.INFO, "todo")
    async with todo(tmp_path, mutate=True) as app, TestBus(app.bus) as t:
        receipt = await app.bus.publish(app.events.NewItem(item="milk"))
        await t.settle()
        [new] = await t.published("events.todo.newitem")
        [saved] = await t.published("events.todo.itemsaved")
        [mutated] = await t.published("events.todo.itemmutated")
    added = new.time.isoformat(timespec="seconds")
    assert sorted(record.getMessage() for record in caplog.records if record.name == "todo") == [
        f"AUDIT @ {added}: milk",
        f"Item mutated; ID: 1; event ID: {saved.id}; item: {mutated.data.item}",
        f"Item saved; ID: 1; event ID: {receipt.id}; item: milk",
        f"Mutating item, event ID: {saved.id}; item: milk",
        f"Saving item, added: {added}; event ID: {receipt.id}; item: milk",
    ]


async def test_an_audit_entry_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Line breaks in an item forge no second audit entry."""
    caplog.set_level(logging.INFO, "todo")
    async with todo(tmp_path) as app, TestBus(app.bus) as t:
        await app.bus.publish(app.events.NewItem(item="milk\nAUDIT @ now: nothing"))
        await t.settle()
    lines = [record.getMessage() for record in caplog.records if record.name == "todo"]
    assert len([line for line in lines if line.startswith("AUDIT")]) == 1
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize("mutate", [False, True])
async def test_mutation_is_off_unless_switched_on(tmp_path: Path, mutate: bool) -> None:
    """Save and audit are always there, the mutating handler only with `TODO_MUTATE=1`; it replaces the text."""
    async with todo(tmp_path, mutate=mutate) as app, TestBus(app.bus) as t:
        await app.bus.publish(app.events.NewItem(item="milk"))
        await t.settle()
        text = "Write a nice review for Learn Docker in a Month of Lunches :)"
        groups = {"save-handler", "audit-handler", "mutating-handler"}
        assert set((await app.bus.engine.stats()).groups) == (groups if mutate else groups - {"mutating-handler"})
        assert await rows(app) == [(1, text if mutate else "milk")]
        assert [message.data.item for message in await t.published("events.todo.itemmutated")] == [text] * mutate


async def test_a_message_from_anybody_is_saved(tmp_path: Path) -> None:
    """Plain JSON without a header, fields that we do not know included, becomes a row dated by the message's time."""
    async with todo(tmp_path) as app, TestBus(app.bus) as t:
        foreign = Outgoing("events.todo.newitem", b'{"item": "milk", "color": "white"}', {}, "any")
        await app.bus.engine.publish([foreign])
        await t.settle()
        [new] = await t.published("events.todo.newitem")
        async with app.database.async_session() as db:
            [row] = await db.scalars(select(app.database.Item))
        assert (row.item, row.date_added) == ("milk", new.time)
        assert row.date_added.utcoffset() is not None


@pytest.mark.parametrize("item", ["", "x" * 257, "a\\u0000b"])
async def test_a_text_no_database_could_hold_is_a_dead_letter(tmp_path: Path, item: str) -> None:
    """An empty, too long or NUL text from a foreign client is `invalid` for the handlers at once; nothing is saved."""
    async with todo(tmp_path) as app, TestBus(app.bus) as t:
        await app.bus.engine.publish([Outgoing("events.todo.newitem", b'{"item": "%s"}' % item.encode(), {}, "any")])
        await t.settle()
        letters = {letter.group: letter.reason for letter in await t.dead_letters()}
        assert letters == {"save-handler": "invalid", "audit-handler": "invalid"}
        assert await rows(app) == []


async def test_a_repeated_message_is_one_row(tmp_path: Path) -> None:
    """The same id published again adds nothing."""
    async with todo(tmp_path) as app, TestBus(app.bus) as t:
        for _ in range(3):
            await app.bus.publish(app.events.NewItem(item="milk"), id="mine")
        await t.settle()
        assert await rows(app) == [(1, "milk")]


async def test_it_works_on_every_database(database: Place, tmp_path: Path) -> None:
    """On SQLite and on PostgreSQL an item is saved, mutated and listed, with its date in UTC."""
    await Migrations(database.url).upgrade()
    async with todo(tmp_path, mutate=True, database=database.url) as app, TestBus(app.bus) as t:
        await app.bus.publish(app.events.NewItem(item="milk"))
        await t.settle()
        [new] = await t.published("events.todo.newitem")
        async with app.database.async_session() as db:
            [row] = await db.scalars(select(app.database.Item))
        assert row.item.startswith("Write a nice review")
        assert (row.date_added, row.date_added.utcoffset()) == (new.time, timedelta(0))


async def test_processes_that_start_together_make_one_table(database: Place) -> None:
    """Eight processes create the tables at the same time, and none fails."""
    code = "import asyncio; from todo.database import create_tables; asyncio.run(create_tables())"
    environment = {"TIDINGS_DATABASE_URL": database.url, "PATH": os.defpath}
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=EXAMPLES, env=environment, stderr=PIPE)
        for _ in range(8)
    ]
    assert [(await process.communicate())[1] for process in processes] == [b""] * 8
    async with database.engine().connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM todo_items")) == 0
        engine = connection.engine
    await engine.dispose()
