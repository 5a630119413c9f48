"""What a batch handler gets: the messages that wait, in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic

from typing_extensions import TypeVar

from .engine import Entry
from .message import Message, new_id

E = TypeVar("E", default=Any)
F = TypeVar("F", default=Any)


class Batch(Generic[E, F]):
    """Messages of one group that waited together, oldest first, at least one. Iterating gives their events.

    Each has an outcome of its own: it is handled, unless `fail` was called for it. An exception out of the handler
    concerns none of them in particular: they are handled again in smaller batches (without a transaction each in a
    batch of one at once), and only one that fails by itself has failed. With a transaction the effects of all that did
    not fail, and their follow-ups, are committed together; so call `fail` before writing anything for the message, or
    leave it out of the statement.

    `Batch[NewItem, ItemIndexed]` also names what `follow` is given, as other handlers' return annotation does: so
    `receipt.wait(ItemIndexed)` knows who could emit it.

    In a test of the handler as a plain function: `Batch.of(NewItem(item="a"), NewItem(item="b"))`.
    """

    __slots__ = ("failures", "follow_ups", "messages")

    def __init__(self, messages: Sequence[Message[E]]) -> None:
        self.messages = tuple(messages)
        """The messages themselves: ids, headers, attempts."""
        self.failures: dict[int, Exception] = {}
        """What `fail` was told, by index."""
        self.follow_ups: dict[int, list[Any]] = {}
        """What `follow` was told, by index."""

    @classmethod
    def of(cls, *events: E) -> Batch[E]:
        """A batch for tests, with messages that were never published."""
        return cls(
            [
                Message(Entry(number, "test", 0.0, {}, b""), event, id=new_id(), group="test")
                for number, event in enumerate(events, 1)
            ]
        )

    def fail(self, index: int, error: Exception) -> None:
        """This message is not handled: it is retried, or becomes a dead letter, as if its handler had raised `error`
        (`RetryLater` and `Reject` included)."""
        if not isinstance(error, Exception):
            raise TypeError(f"fail({index}, …) takes an exception that says why, not {error!r}")
        self.failures[self._checked(index)] = error

    def follow(self, index: int, *events: F) -> None:
        """Events that follow from this message: they leave when it is handled, and only then, in this order."""
        self.follow_ups.setdefault(self._checked(index), []).extend(events)

    def __iter__(self) -> Iterator[E]:
        return (message.data for message in self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, index: int) -> E:
        return self.messages[index].data

    def __repr__(self) -> str:
        return f"<Batch of {len(self.messages)}>"

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.messages):
            raise IndexError(f"message {index} of a batch of {len(self.messages)}: count from 0, as enumerate() does")
        return index
