"""What is published: a caller with its messages, one message, and those that are answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from ...engine import Outgoing, Stored
from ...errors import EngineError, EngineUnavailable, Unconfirmed
from .connection import Frame

Arrived: TypeAlias = "Callable[[Flight, Frame | Exception], None]"


class Call(asyncio.Future[list[Stored]]):
    """One caller: its messages, and what became of them. It waits for the call itself; cancelling it is its going."""

    __slots__ = ("answers", "apart", "begun", "late", "left", "queued", "sent", "until", "why")

    def __init__(self, items: list[Item], until: float) -> None:
        super().__init__()
        self.answers: list[Item | Stored] = items  # type: ignore[assignment]
        """Its messages, each replaced by where it is stored."""
        self.until = until
        self.left = len(items)
        """Messages without an answer."""
        self.begun = 0
        """Messages that have left the line."""
        self.apart = 0
        """Up to here they go one by one: a batch of them was refused."""
        self.late = items[0].late
        """All of them are to wait for their time, each by itself."""
        self.queued = False
        """Whether it stands in line."""
        self.sent = False
        """Whether any of them may have reached the log."""
        self.why = "no answer in time"

    @property
    def flying(self) -> bool:
        """Whether messages of it have left and have no answer yet."""
        return self.begun + self.left > len(self.answers)

    def stored(self, index: int, place: Stored) -> None:
        if isinstance(self.answers[index], Item):
            self.answers[index] = place
            self.left -= 1
            if not self.left and not self.done():
                self.set_result(self.answers)  # type: ignore[arg-type]

    def fail(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)
            self.exception()  # whoever asked may have gone

    def give_up(self, patience: float) -> None:
        """Its time is over."""
        self.end(EngineUnavailable(f"nothing was published: {self.why}"), f"within {patience:g} s ({self.why})")

    def end(self, error: EngineError, when: str) -> None:
        """Nothing more is done for it: `error`, or `Unconfirmed` when something of it may be stored."""
        if self.sent:
            error = Unconfirmed(
                f"{self.left} of {len(self.answers)} messages were not confirmed {when}: "
                "stored or not. Publishing again with the same ids is safe"
            )
        self.fail(error)


class Item:
    """One message of a call."""

    __slots__ = ("call", "index", "late", "lines", "message", "size")

    def __init__(self, message: Outgoing, lines: str) -> None:
        self.call: Call
        self.index = 0
        self.message = message
        self.lines = lines
        """Its own headers as they are sent."""
        self.size = len(message.subject) + len(lines) + len(message.body)
        self.late = False
        """It goes to Control and waits there. Decided once: a repeat by the other way would be stored again."""


class Flight:
    """Messages that are answered together: a single one, or an atomic batch, whose members never change."""

    __slots__ = ("due", "handler", "items", "reply", "size", "tries")

    def __init__(self, items: list[Item], size: int, handler: Arrived) -> None:
        self.items = items
        self.size = size
        self.handler = handler
        self.reply = ""
        self.due = 0.0
        """When an answer counts as lost."""
        self.tries = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return any(not item.call.done() for item in self.items)

    def arrived(self, answer: Frame | Exception) -> None:
        self.handler(self, answer)
