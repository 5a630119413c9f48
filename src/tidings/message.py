"""A message as handlers see it, and how it is written for the wire.

The body is plain JSON; everything else is a header: CloudEvents 1.0 attributes in binary mode and W3C trace context.
A message without any header, from any client in any language, is a message all the same.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Generic
from urllib.parse import quote, unquote

from typing_extensions import TypeVar

from .engine import Entry, Outgoing

T = TypeVar("T", default=Any)

ID: Final = "ce-id"
TYPE: Final = "ce-type"
SOURCE: Final = "ce-source"
TIME: Final = "ce-time"
SPEC_VERSION: Final = "ce-specversion"
CORRELATION: Final = "ce-correlationid"
CAUSATION: Final = "ce-causationid"
KEY: Final = "ce-partitionkey"
EXPIRY: Final = "ce-expirytime"
TRACEPARENT: Final = "traceparent"

_FOLLOW_UPS: Final = uuid.UUID("5f0b1f0e-4c61-5d0f-9d58-3b9a4a6f5c11")
_COUNTS: Final = 1 << 26
"""Ids of one millisecond."""
_DRAWN: Final = 256
"""Ids for which noise is drawn at a time."""


class Message(Generic[T]):
    """One message in the hands of a handler.

    `Message[NewItem]` has its `data` as that type. A bare `Message` has the type of the event class its handler was
    registered with, or, behind a filter such as `events.todo.>`, plain JSON values.
    """

    __slots__ = ("_entry", "_headers", "attempt", "data", "group", "id", "replay", "subject")

    def __init__(
        self, entry: Entry, data: T, *, id: str, group: str = "", attempt: int = 1, replay: str | None = None
    ) -> None:
        self.id = id
        """Stable over retries, redeliveries and redrives: the idempotency key for effects outside the database."""
        self.subject = entry.subject
        self.data = data
        self.group = group
        self.attempt = attempt
        """1 for the first try; redeliveries after a crash do not count."""
        self.replay = replay
        """The id of the replay (`tidings replay`) that brought it again, or None."""
        self._entry = entry
        self._headers = entry.headers

    @property
    def body(self) -> bytes:
        """The raw bytes."""
        return self._entry.body

    @property
    def time(self) -> datetime:
        """When the engine stored it."""
        return datetime.fromtimestamp(self._entry.time, UTC)

    @property
    def position(self) -> int:
        """Its place in the log."""
        return self._entry.position

    @property
    def headers(self) -> dict[str, str]:
        """All headers as text, decoded."""
        return {name: decode_header(value) for name, value in self._headers.items()}

    def header(self, name: str) -> str | None:
        """One header's text, or None."""
        value = self._headers.get(name)
        return None if value is None else decode_header(value)

    @property
    def correlation_id(self) -> str:
        """The id of the first message of the chain this one belongs to (its own when it began the chain)."""
        return self.header(CORRELATION) or self.id

    @property
    def causation_id(self) -> str | None:
        """The id of the message whose handling published this one."""
        return self.header(CAUSATION)

    @property
    def source(self) -> str | None:
        """Name of the application that published it."""
        return self.header(SOURCE)

    @property
    def key(self) -> str | None:
        """The ordering key."""
        return self.header(KEY)

    @property
    def expires(self) -> datetime | None:
        """When it is too late to handle it."""
        over = expiry(self._headers)
        return None if over is None else datetime.fromtimestamp(over, UTC)

    def __repr__(self) -> str:
        return f"<Message {self.id} on {self.subject}>"


current_message: ContextVar[Message[Any] | None] = ContextVar("tidings_current_message", default=None)
"""The message whose handler is running: what is published meanwhile is caused by it."""


def identity(entry: Entry, namespace: str) -> str:
    """The message's id: its CloudEvents id, or, for foreign messages, its place in the log and the millisecond in which
    it was stored. A broker that was emptied or replaced counts from 1 again, and a database that outlives the log must
    not take what is new for what it has handled."""
    given = entry.headers.get(ID)
    return decode_header(given) if given else f"{namespace}-{entry.position}-{round(entry.time * 1000)}"


def place_of(id: str, namespace: str) -> int:
    """The position that is in the id of a foreign message; 0 for any other id."""
    position, _, moment = id.removeprefix(f"{namespace}-").partition("-")
    told = id.startswith(f"{namespace}-") and position.isdecimal() and moment.isdecimal()
    return int(position) if told else 0


def expiry(headers: Mapping[str, str]) -> float | None:
    """When the message expires, in seconds since 1970. What is no time of RFC 3339 is taken for none: a message is
    handled rather than lost."""
    given = headers.get(EXPIRY)
    if given is None:
        return None
    try:
        over = datetime.fromisoformat(decode_header(given).strip().upper())
        return None if over.tzinfo is None else over.timestamp()
    except (ValueError, OverflowError):
        return None


def compose(
    subject: str,
    body: bytes,
    *,
    id: str,
    ce_type: str,
    source: str,
    now: float,
    key: str | None = None,
    cause: Message[Any] | None = None,
    not_before: float | None = None,
    expires: float | None = None,
) -> Outgoing:
    """Write a message for the wire."""
    headers = {ID: encode_header(id), **_lasting(ce_type, source), TIME: _rfc3339(now)}
    if key is not None:
        headers[KEY] = encode_header(key)
    if expires is not None:
        headers[EXPIRY] = _rfc3339(expires)
    if cause is not None:
        headers[CORRELATION] = encode_header(cause.correlation_id)
        headers[CAUSATION] = encode_header(cause.id)
        if trace := cause.header(TRACEPARENT):
            headers[TRACEPARENT] = encode_header(trace)
    else:
        headers[CORRELATION] = headers[ID]
    return Outgoing(subject, body, headers, id, not_before)


@lru_cache(maxsize=1024)
def _lasting(ce_type: str, source: str) -> dict[str, str]:
    """The headers that are the same for all messages of a type."""
    return {TYPE: encode_header(ce_type), SOURCE: encode_header(source), SPEC_VERSION: "1.0"}


@lru_cache(maxsize=16)
def _rfc3339(seconds: float) -> str:
    # Rounded here, not by `datetime`: the parts must agree on which second it is.
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{micros:06d}Z"


@lru_cache(maxsize=16)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).isoformat().removesuffix("+00:00")


def follow_up_id(cause: Message[Any], index: int) -> str:
    """Id of the n-th follow-up of a message in a group: the same again when the handler runs again."""
    return str(uuid.uuid5(_FOLLOW_UPS, f"{cause.subject}\n{cause.id}\n{cause.group}\n{index}"))


def encode_header(text: str) -> str:
    """Text as printable ASCII; the rest, spaces, '%' and '"' percent-encoded as CloudEvents asks for (HTTP 3.1.3.2)."""
    if text.isascii() and text.isprintable() and not ("%" in text or " " in text or '"' in text):
        return text
    return quote(text, safe="!#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="surrogatepass")


def decode_header(value: str) -> str:
    """The text of a header; a foreign value with stray percent signs is taken as it is."""
    return unquote(value) if "%" in value else value


def header_size(headers: Mapping[str, str]) -> int:
    """Bytes of a header block on the wire."""
    return 12 + len("".join(headers)) + len("".join(headers.values())) + 4 * len(headers)


class _IdMaker:
    """UUIDv7 (RFC 9562): milliseconds, a counter that rises within one, so that ids of a process sort, and 48 random
    bits. What the ids of one millisecond have in common is written once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._millisecond = 0
        self._begins = ""
        """The text of an id up to its counter."""
        self._count = 0
        self._noise: list[str] = []

    def __call__(self) -> str:
        now = time.time_ns() // 1_000_000
        with self._lock:
            if not self._noise:
                # Asking the system costs as much as all the rest: for many at a time.
                drawn = os.urandom(6 * _DRAWN).hex()
                self._noise = [drawn[at : at + 12] for at in range(0, 12 * _DRAWN, 12)]
            if now > self._millisecond or self._count == _COUNTS - 1:
                self._begin(max(now, self._millisecond + 1))
            self._count = count = self._count + 1
            begins, noise = self._begins, self._noise.pop()
        return f"{begins}{count >> 14:03x}-{0x8000 | count & 0x3FFF:04x}-{noise}"

    def _begin(self, millisecond: int) -> None:
        """Count on from somewhere in the lower half: others that begin now count from elsewhere."""
        text = f"{millisecond:012x}"
        self._millisecond, self._begins = millisecond, f"{text[:8]}-{text[8:]}-7"
        self._count = int(self._noise[0], 16) % (_COUNTS // 2)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock, and nobody is left to give it back; and the parent goes
        on with the same noise."""
        self._lock = threading.Lock()
        self._noise = []


new_id = _IdMaker()
"""A new message id."""


def born(id: str) -> float:
    """When an id was made, in seconds since 1970; 0 for one that does not say (no UUIDv7)."""
    try:
        value = uuid.UUID(id)
    except ValueError:
        return 0.0
    return (value.int >> 80) / 1000 if value.version == 7 else 0.0


os.register_at_fork(after_in_child=new_id.after_fork)
