"""From a value in the application to a message in the log.

`compose` checks everything before the wire; `send` hands it to the engine. Follow-ups of handlers and staged outbox
messages take the same two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar, overload

import msgspec

from .clock import Clock
from .codec import codec_for
from .engine import Engine, Outgoing
from .errors import ConfigError, InvalidMessage, TooLarge, Unconfirmed
from .events import spec_of
from .message import Message, compose, current_message, header_size, new_id
from .registry import Registry
from .subjects import check_subject, within
from .watching.progress import Progress

E = TypeVar("E")


class Waiting(Protocol):
    """What follows a message for a receipt; see `receipts`."""

    async def wait(self, receipt: Receipt, event: Any, timeout: float) -> Any: ...

    async def progress(self, receipt: Receipt, events: tuple[Any, ...]) -> Progress: ...


class Receipt(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """What `publish` answers: the message is stored as durably as the engine's setting says."""

    id: str
    """The message's id; publishing again with it on the same subject stores nothing new."""
    subject: str
    position: int = 0
    """Its place in the log; 0 while it waits for its time, or when the answer never came (`Unconfirmed`)."""
    duplicate: bool = False
    """The id was known: this publish stored nothing."""
    waiting: Waiting | None = None

    @overload
    async def wait(self, event: type[E], timeout: float = 5.0) -> E: ...

    @overload
    async def wait(self, event: str, timeout: float = 5.0) -> Any: ...

    async def wait(self, event: Any, timeout: float = 5.0) -> Any:
        """Wait for the first event of this class (or on this subject) that comes of this very publish, by way of any
        number of handlers, in whatever process.

        Raises `StillWorking` after `timeout` seconds, and `DeadLettered` as soon as every group that could emit the
        event has given up; a redrive may bring it all the same, so both may be waited for again. Writes nothing;
        cancelling it changes nothing.
        """
        return await self._waiting().wait(self, event, timeout)

    async def progress(self, *events: Any) -> Progress:
        """How far the handling is at this moment, with a view to these events. Raises `LookupError` when the message is
        not in the log: not published, not due yet, or too old."""
        return await self._waiting().progress(self, events)

    def _waiting(self) -> Waiting:
        if self.waiting is None:
            raise ConfigError("this receipt belongs to no bus: rebuild it with bus.receipt(id)")
        return self.waiting


class Publisher:
    """Writes messages for one bus."""

    def __init__(self, engine: Engine, registry: Registry, *, source: str, roots: Sequence[str], clock: Clock) -> None:
        self.engine = engine
        self.registry = registry
        self.source = source
        self.roots = tuple(roots)
        self.clock = clock
        self.waiting: Waiting | None = None
        """What follows messages for the receipts given out."""

    def compose(
        self,
        what: Any,
        body: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | None = None,
        cause: Message[Any] | None = None,
    ) -> Outgoing:
        """The message for an event, or for a subject and a plain body. Raises `InvalidMessage`; sends nothing."""
        subject, ce_type, codec, value, field = self._describe(what, body)
        if not within(self.roots, subject):
            raise InvalidMessage(
                f"{subject!r} is outside the durable subjects {', '.join(self.roots)}: publish stores events; for what "
                "only present listeners need, use broadcast; other durable subjects are given by Bus(roots=…)"
            )
        if key is None and field is not None and (own := getattr(value, field)) is not None:
            key = str(own)
        now = self.clock.time()
        due = _due(now, delay, at)
        message = compose(
            subject,
            codec.encode(value),
            id=check_id(id) if id is not None else new_id(),
            ce_type=ce_type,
            source=self.source,
            now=now,
            key=check_key(key) if key is not None else None,
            cause=cause or current_message.get(),
            not_before=due,
            expires=None if expires is None else _over(now, due, expires),
        )
        size = len(message.body) + len(subject) + header_size(message.headers)
        if size > self.engine.max_message:
            raise TooLarge(size, self.engine.max_message)
        return message

    def _describe(self, what: Any, body: Any) -> tuple[str, str, Any, Any, str | None]:
        if isinstance(what, str):
            check_subject(what)
            return what, what, codec_for(Any), body, None
        spec = spec_of(type(what))
        if spec is not None and body is not None:
            raise InvalidMessage(f"{type(what).__name__} is the whole message: give no body beside it")
        if spec is None:
            raise InvalidMessage(
                f"publish() takes an event, or a subject and a body; {type(what).__name__} has no subject: derive it "
                'from tidings.Event or decorate it with @tidings.event("events.…")'
            )
        if spec.is_request:
            raise InvalidMessage(f"{type(what).__name__} is a request: ask with bus.request(…)")
        return spec.subject, spec.ce_type, codec_for(spec.type), what, spec.key

    async def send(self, messages: Sequence[Outgoing]) -> list[Receipt]:
        """Store them, in order. Raises `Unconfirmed` with their receipts when the answer stays away."""
        if not messages:
            return []
        try:
            stored = await self.engine.publish(messages)
        except Unconfirmed as error:
            raise Unconfirmed(
                str(error), tuple(Receipt(m.id, m.subject, waiting=self.waiting) for m in messages)
            ) from error
        return [
            Receipt(message.id, message.subject, place.position, place.duplicate, self.waiting)
            for message, place in zip(messages, stored, strict=True)
        ]


def check_id(id: str) -> str:
    """An id given by the caller: 1 to 200 characters, no control characters."""
    if not 1 <= len(id) <= 200 or not id.isprintable():
        raise InvalidMessage(f"id {id[:40]!r}: an id has 1 to 200 printable characters")
    return id


def check_key(key: str) -> str:
    """An ordering key: text that every engine and database can hold."""
    if "\0" in key or any("\ud800" <= character <= "\udfff" for character in key):
        raise InvalidMessage(f"key {key[:40]!r}: a key has no NUL and no half of a surrogate pair")
    return key


def _due(now: float, delay: float | None, at: datetime | None) -> float | None:
    if delay is not None and at is not None:
        raise InvalidMessage("give delay= or at=, not both")
    if at is not None:
        if at.tzinfo is None:
            raise InvalidMessage(f"at={at.isoformat()} has no time zone: write datetime(…, tzinfo=UTC)")
        due = at.timestamp()
    elif delay is not None:
        due = now + delay
    else:
        return None
    if not due <= now + 100 * 365 * 86400:
        raise InvalidMessage(f"due {due - now:g} s from now: a message waits a hundred years at most")
    return due if due > now else None


def _over(now: float, due: float | None, expires: float) -> float:
    if not 0 < expires <= 100 * 365 * 86400:
        raise InvalidMessage(f"expires={expires:g}: more than 0 seconds, and a hundred years at most")
    if due is not None and now + expires <= due:
        raise InvalidMessage(f"expires={expires:g}: it would be over before it is due, {due - now:g} s from now")
    return now + expires
