"""From a value in the application to a message in the log.

`compose` checks everything before the wire; `send` hands it to the engine. Follow-ups of handlers and staged outbox
messages take the same two steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar, overload

import msgspec

from .clock import Clock
from .codec import Codec, codec_for
from .engine import Engine, Outgoing, Stored
from .errors import ConfigError, InvalidMessage, TooLarge, Unconfirmed
from .events import spec_of
from .message import Message, compose, current_message, header_size, new_id
from .registry import Registry
from .settings import seconds
from .subjects import check_subject, within
from .watching.progress import Progress

E = TypeVar("E")

_FORMS: Final = 4096
"""Kinds of messages that a publisher remembers."""


class Waiting(Protocol):
    """What follows a message for a receipt; see `receipts`."""

    async def wait(self, receipt: Receipt, event: Any, timeout: float) -> Any: ...

    async def progress(self, receipt: Receipt, events: tuple[Any, ...]) -> Progress: ...


class Receipt(msgspec.Struct, frozen=True):
    """What `publish` answers: the message is stored as durably as the engine's setting says."""

    id: str
    """The message's id; publishing again with it on the same subject stores nothing new."""
    subject: str
    position: int = 0
    """Its place in the log; 0 while it waits for its time, or when the answer never came (`Unconfirmed`)."""
    duplicate: bool = False
    """The id was known: this publish stored nothing."""
    waiting: Waiting | None = None

    def __repr__(self) -> str:
        known = f", duplicate={self.duplicate}" if self.duplicate else ""
        return f"Receipt(id={self.id!r}, subject={self.subject!r}, position={self.position}{known})"

    @overload
    async def wait(self, event: type[E], timeout: str | float = 5.0) -> E: ...

    @overload
    async def wait(self, event: str, timeout: str | float = 5.0) -> Any: ...

    async def wait(self, event: Any, timeout: str | float = 5.0) -> Any:
        """Wait for the first event of this class (or on this subject) that comes of this very publish, by way of any
        number of handlers, in whatever process.

        Raises `StillWorking` after `timeout` seconds, and `DeadLettered` as soon as every group that could emit the
        event has given up; a redrive may bring it all the same, so both may be waited for again. Writes nothing;
        cancelling it changes nothing.
        """
        return await self._waiting().wait(self, event, seconds(timeout))

    async def progress(self, *events: Any) -> Progress:
        """How far the handling is at this moment, with a view to these events. Raises `LookupError` when the message is
        not in the log: not published, not due yet, or too old."""
        return await self._waiting().progress(self, events)

    def _waiting(self) -> Waiting:
        if self.waiting is None:
            raise ConfigError("this receipt belongs to no bus: rebuild it with bus.receipt(id)")
        return self.waiting


class _Form(msgspec.Struct, frozen=True):
    """What all messages of a class, or on a subject, have in common."""

    subject: str
    ce_type: str
    codec: Codec
    key: str | None = None
    """The field that orders them."""
    plain: bool = False
    """No class says what they are: the body is given beside the subject."""


def _form_of_subject(subject: str) -> _Form:
    check_subject(subject)
    return _Form(subject, subject, codec_for(Any), plain=True)


def _form_of_class(cls: type) -> _Form:
    spec = spec_of(cls)
    if issubclass(cls, type):
        raise InvalidMessage("publish() takes an event, not a class: make one with NewItem(…)")
    if spec is None:
        raise InvalidMessage(
            f"publish() takes an event, or a subject and a body; {cls.__name__} has no subject: derive it "
            'from tidings.Event with subject="events.…", or decorate it with @tidings.event("events.…")'
        )
    if spec.is_request:
        raise InvalidMessage(f"{cls.__name__} is a request: ask with bus.request(…)")
    return _Form(spec.subject, spec.ce_type, codec_for(spec.type), spec.key)


class Publisher:
    """Writes messages for one bus."""

    def __init__(self, engine: Engine, registry: Registry, *, source: str, roots: Sequence[str], clock: Clock) -> None:
        self.engine = engine
        self.registry = registry
        self.source = source
        self.roots = tuple(roots)
        self.clock = clock
        self._forms: dict[Any, _Form] = {}
        self.waiting: Waiting | None = None
        """What follows messages for the receipts given out."""

    def compose(
        self,
        what: Any,
        body: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        delay: str | float | None = None,
        at: datetime | None = None,
        expires: str | float | None = None,
        cause: Message[Any] | None = None,
    ) -> Outgoing:
        """The message for an event, or for a subject and a plain body. Raises `InvalidMessage`; sends nothing."""
        form = self._form(what, body)
        value = body if form.plain else what
        if key is None and form.key is not None and (own := getattr(value, form.key)) is not None:
            key = str(own)
        now = self.clock.time()
        due = _due(now, _in_seconds("delay", delay), at) if delay is not None or at is not None else None
        message = compose(
            form.subject,
            form.codec.encode(value),
            id=check_id(id) if id is not None else new_id(),
            ce_type=form.ce_type,
            source=self.source,
            now=now,
            key=check_key(key) if key is not None else None,
            cause=cause or current_message.get(),
            not_before=due,
            expires=None if expires is None else _over(now, due, _in_seconds("expires", expires)),
        )
        return self._fitting(message, self.engine.max_message)

    def compose_many(self, events: Iterable[Any]) -> list[Outgoing]:
        """`compose` for many events of one moment."""
        now, cause, most, source = self.clock.time(), current_message.get(), self.engine.max_message, self.source
        messages = []
        for event in events:
            form = self._form(event, None)
            value = None if form.plain else event
            own = None if form.key is None else getattr(value, form.key)
            key = None if own is None else check_key(str(own))
            body = form.codec.encode(value)
            message = compose(
                form.subject, body, id=new_id(), ce_type=form.ce_type, source=source, now=now, key=key, cause=cause
            )
            messages.append(self._fitting(message, most))
        return messages

    def _fitting(self, message: Outgoing, most: int) -> Outgoing:
        size = len(message.body) + len(message.subject) + header_size(message.headers)
        if size > most:
            raise TooLarge(size, most)
        return message

    def _form(self, what: Any, body: Any) -> _Form:
        """Looked up, but for the first message of its kind."""
        if isinstance(what, str):
            kind: Any = what
        elif body is None or spec_of(type(what)) is None:
            kind = type(what)
        else:
            raise InvalidMessage(f"{type(what).__name__} is the whole message: give no body beside it")
        form = self._forms.get(kind)
        if form is None:
            form = _form_of_subject(kind) if isinstance(kind, str) else _form_of_class(kind)
            self._check_durable(form.subject)
            if len(self._forms) >= _FORMS:
                self._forms.clear()
            self._forms[kind] = form
        return form

    def _check_durable(self, subject: str) -> None:
        if not within(self.roots, subject):
            raise InvalidMessage(
                f"{subject!r} is outside the durable subjects {', '.join(self.roots)}: publish stores events; for what "
                "only present listeners need, use broadcast; other durable subjects are given by Bus(roots=…)"
            )

    async def send(self, messages: Sequence[Outgoing]) -> list[Receipt]:
        """Store them, in order. Raises `Unconfirmed` with their receipts when the answer stays away."""
        if not messages:
            return []
        try:
            return self._receipts(messages, await self.engine.publish(messages))
        except Unconfirmed as error:
            raise self._unconfirmed(messages, error) from error

    async def send_one(self, message: Outgoing) -> Receipt:
        """`send` for one, with little to be kept for those who wait by the thousand."""
        try:
            [place] = await self.engine.publish((message,))
        except Unconfirmed as error:
            raise self._unconfirmed((message,), error) from error
        return Receipt(message.id, message.subject, place.position, place.duplicate, self.waiting)

    def _receipts(self, messages: Sequence[Outgoing], places: Sequence[Stored]) -> list[Receipt]:
        waiting = self.waiting
        return [
            Receipt(message.id, message.subject, place.position, place.duplicate, waiting)
            for message, place in zip(messages, places, strict=True)
        ]

    def _unconfirmed(self, messages: Sequence[Outgoing], error: Unconfirmed) -> Unconfirmed:
        receipts = tuple(Receipt(message.id, message.subject, waiting=self.waiting) for message in messages)
        return Unconfirmed(str(error), receipts)


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


@overload
def _in_seconds(name: str, given: str | float) -> float: ...


@overload
def _in_seconds(name: str, given: str | float | None) -> float | None: ...


def _in_seconds(name: str, given: str | float | None) -> float | None:
    try:
        return seconds(given)
    except ConfigError as error:
        raise InvalidMessage(f"{name}={error}") from None


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
