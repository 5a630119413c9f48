"""What happens in the to-do list. Subjects and fields are all that its parts know of one another."""

from __future__ import annotations

from typing import Annotated

import msgspec

import tidings

LONGEST = 256

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST, pattern=r"^[^\x00]*\Z")]
"""The text of an item; databases refuse NUL. A message with another one, from whatever client, is a dead letter."""


class NewItem(tidings.Event, subject="events.todo.newitem"):
    """Somebody wants an item on the list."""

    item: Text


class ItemSaved(tidings.Event, subject="events.todo.itemsaved"):
    """The item is in the database."""

    id: int
    item: str


class ItemMutated(tidings.Event, subject="events.todo.itemmutated"):
    """A saved item has another text now."""

    id: int
    item: str
