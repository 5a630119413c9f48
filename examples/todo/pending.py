"""What is wanted and not saved yet, read from the log and the dead letters: the page shows it after a reload too."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tidings import DecodeError, Message
from tidings.engine import Engine, Entry
from tidings.running import Running
from tidings.watching.failures import Failed, of_letter

from .events import NewItem

SAVE = "save-handler"
TAIL = 1000
"""Entries looked at. Of a longer queue the older items show when they are saved."""


async def pending_items(running: Running) -> list[dict[str, Any]]:
    """Oldest first; those that the save-handler has given up on are `dead`, with the reason."""
    wanted: dict[int, Message[NewItem]] = {}
    saved: set[str] = set()
    for entry in await tail(running.engine):
        with suppress(DecodeError):  # what cannot be read can neither be saved nor shown
            message = running.decode(entry)
            if isinstance(message.data, NewItem):
                wanted[message.position] = message
            else:
                saved.add(message.correlation_id)
    dead: dict[int, Failed] = {}
    for letter in await running.engine.dead_letters(SAVE, 0, TAIL):
        with suppress(DecodeError):
            wanted[letter.entry.position] = running.decode(letter.entry)
            dead[letter.entry.position] = of_letter(letter, running.namespace)
    return [
        item_of(message, dead.get(position))
        for position, message in sorted(wanted.items())
        if position in dead or message.id not in saved
    ]


async def tail(engine: Engine) -> list[Entry]:
    """The end of the log, as far as it is about wanted and saved items."""
    after = max(0, (await engine.stats()).last - TAIL)
    return await engine.read(["events.todo.newitem", "events.todo.itemsaved"], after, TAIL)


def item_of(message: Message[NewItem], failed: Failed | None) -> dict[str, Any]:
    item = {
        "id": message.id,
        "position": message.position,
        "item": message.data.item,
        "date_added": message.time.isoformat(),
    }
    return {**item, "state": "working"} if failed is None else {**item, "state": "dead", **why(failed)}


def why(failed: Failed) -> dict[str, Any]:
    """What people may know of a failure."""
    return {name: getattr(failed, name) for name in ("group", "attempts", "reason", "error", "text")}
