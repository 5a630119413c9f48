"""Who does something about it: an item is saved, audited and, if you switch that on, mutated.

Start them all with `tidings run todo.handlers:bus`, or one with `--group audit-handler`, as often as you like.
"""

from __future__ import annotations

import logging
import os

from sqlalchemy.ext.asyncio import AsyncSession

import tidings

from .database import Item, async_session, create_tables
from .events import ItemMutated, ItemSaved, NewItem

log = logging.getLogger("todo")

bus = tidings.Bus("todo", sessions=async_session)
bus.on_start(create_tables)


@bus.on(NewItem, group="save-handler")
async def save(new: NewItem, message: tidings.Message, db: AsyncSession) -> ItemSaved:
    """The row, the note that this message is handled, and the event are committed together, or nothing is."""
    added, text = message.time.isoformat(timespec="seconds"), one_line(new.item)
    log.info("Saving item, added: %s; event ID: %s; item: %s", added, message.id, text)
    row = Item(item=new.item, date_added=message.time)
    db.add(row)
    await db.flush()
    log.info("Item saved; ID: %s; event ID: %s; item: %s", row.id, message.id, text)
    return ItemSaved(id=row.id, item=row.item)


@bus.on(NewItem, group="audit-handler")
async def audit(new: NewItem, message: tidings.Message) -> None:
    """A feature that was added later: nothing else had to know."""
    log.info("AUDIT @ %s: %s", message.time.isoformat(timespec="seconds"), one_line(new.item))


def one_line(text: str) -> str:
    """For the log, where the line breaks of a stranger would forge lines."""
    return " ".join(text.split())


async def mutate(saved: ItemSaved, message: tidings.Message, db: AsyncSession) -> ItemMutated | None:
    """Reacts to what another handler did, and tells in its turn."""
    log.info("Mutating item, event ID: %s; item: %s", message.id, one_line(saved.item))
    row = await db.get(Item, saved.id)
    if row is None:
        return None
    row.item = "Write a nice review for Learn Docker in a Month of Lunches :)"
    log.info("Item mutated; ID: %s; event ID: %s; item: %s", row.id, message.id, row.item)
    return ItemMutated(id=row.id, item=row.item)


if os.environ.get("TODO_MUTATE") == "1":
    bus.on(ItemSaved, group="mutating-handler")(mutate)
