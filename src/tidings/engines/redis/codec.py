"""What the functions answer, as values of the seam; and what they take."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from ...engine import DeadLetter, Delivery, Entry, Failure, Headers, Outgoing
from ...errors import InvalidMessage, TooLarge
from ...subjects import check_subject

MAX_MESSAGE: Final = 1024 * 1024
PAGE: Final = 4 * 1024 * 1024
"""Bytes that one answer may have before it is cut."""
_FAR: Final = 9_000_000_000.0  # seconds since 1970: in 2255, the same as on other engines
_MAX_HEADERS: Final = 40 * 1024
_NAME: Final = re.compile(r"(?!nats-)[A-Za-z0-9-]{1,64}\Z", re.IGNORECASE)
_VALUE: Final = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?\Z")


class _Pulled(msgspec.Struct, array_like=True, gc=False):
    """One delivery; its headers and body stand elsewhere, behind those of the one before."""

    position: int
    subject: str
    time: float
    headers: int
    """Bytes."""
    body: int
    """Bytes."""
    deliveries: int = 1
    attempts: int = 0
    crashes: int = 0
    replay: str = ""
    dropped: int = 0
    returned: int = 0


_PULLED: Final = msgspec.msgpack.Decoder(list[_Pulled])
_HEADERS: Final = msgspec.json.Decoder(dict[str, str])


def check(message: Outgoing) -> int:
    """The size in bytes; raises `InvalidMessage` or `TooLarge` for what not every engine can carry."""
    check_subject(message.subject)
    _check_value("the id", message.id)
    size = len(message.subject) + len(message.body) + check_headers(message.headers)
    if size > MAX_MESSAGE:
        raise TooLarge(size, MAX_MESSAGE)
    if message.not_before is not None and not message.not_before < _FAR:
        raise InvalidMessage(f"{message.subject}: a message cannot wait until {message.not_before!r}")
    return size


def check_headers(headers: Headers) -> int:
    """The bytes of the headers; raises `InvalidMessage` for one that would not arrive as it is on every engine."""
    for name, value in headers.items():
        if not _NAME.match(name):
            raise InvalidMessage(
                f"{name[:80]!r} is not a header name: use letters, digits and '-', and none that begins with 'Nats-'"
            )
        _check_value(f"the header {name}", value)
    size = sum(len(name) + len(value) + 4 for name, value in headers.items())
    if size > _MAX_HEADERS:
        raise InvalidMessage(f"the headers have {size:,} bytes, the limit is {_MAX_HEADERS:,}: put it into the body")
    return size


def _check_value(what: str, value: str) -> None:
    if not _VALUE.match(value):
        raise InvalidMessage(f"{what} has the value {value[:80]!r}: only printable ASCII without blanks at the ends")


def packed(headers: Headers) -> bytes:
    """Headers as they are kept."""
    return msgspec.json.encode(dict(headers)) if headers else b"{}"


def headers_of(kept: bytes) -> dict[str, str]:
    return _HEADERS.decode(kept) if len(kept) > 2 else {}


def entry_of(position: int, subject: bytes, time: bytes, headers: bytes, body: bytes) -> Entry:
    return Entry(position, subject.decode(), float(time), headers_of(headers), body)


def deliveries_of(packed: bytes, texts: bytes, group: str, token: str, deadline: float) -> list[Delivery]:
    """What `pull` answers. Many small values would each have to be read from the wire: so there are two large ones."""
    found: list[Delivery] = []
    at = 0
    for told in _PULLED.decode(packed) if packed else ():
        begin = at + told.headers
        end = begin + told.body
        entry = Entry(told.position, told.subject, told.time, headers_of(texts[at:begin]), texts[begin:end])
        tried, dropped = (told.deliveries, told.attempts), bool(told.dropped)
        found.append(Delivery(entry, group, *tried, deadline, token, told.crashes, told.replay, dropped, told.returned))
        at = end
    return found


def failure_of(kept: bytes) -> Failure:
    return msgspec.json.decode(kept, type=Failure) if kept else Failure("", "")


def letter_of(raw: list[Any]) -> DeadLetter:
    group, position, subject, time, headers, body, first, reason, failure, attempts, died, replay = raw
    entry = entry_of(position, subject, time, headers, body)
    return DeadLetter(
        group.decode(),
        entry,
        reason.decode(),
        failure_of(failure),
        int(attempts),
        float(died),
        None if first is None else bytes(first),
        replay.decode(),
    )
