"""What our messages look like on the wire: acknowledgement subjects, headers, dead letters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from ...engine import DeadLetter, Delivery, Entry, Failure, Headers, Outgoing, Reason
from ...errors import InvalidMessage, TooLarge
from ...subjects import check_subject
from .connection import Frame
from .headers import ORIGIN, Block, is_senders

MAX_HEADERS: Final = 40 * 1024
"""Bytes of headers in a message of ours: the server allows 64 KiB, a dead letter adds up to `_ROOM`."""
_ROOM: Final = 16 * 1024
FAR: Final = 9_000_000_000.0
"""Seconds since 1970 (in 2255) beyond which the server's clock arithmetic overflows."""

_USUAL: Final = 1000
_usual: dict[tuple[str, ...], str] = {}
"""For names of headers that have been checked once, their lines without the values."""
_NAME = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_VALUE = re.compile(r"[ -~]*\Z")


class Source(msgspec.Struct, gc=False):
    """Where a delivery comes from: what its acknowledgement subject says."""

    stream: str
    deliveries: int
    position: int
    """Sequence in that stream."""
    number: int
    """The consumer's own count of what it sends, one more with each."""
    time: float


def source(reply: str) -> Source:
    """Read `$JS.ACK.<stream>.<consumer>.<deliveries>.<seq>.<consumer seq>.<time>.<pending>`, perhaps with a domain."""
    parts = reply.split(".")
    if len(parts) > 9:
        parts = parts[2:]
    return Source(parts[2], int(parts[4]), int(parts[5]), int(parts[6]), int(parts[7]) / 1e9)


def clean(headers: Mapping[str, Any] | None) -> Headers:
    """The sender's own headers, without those that mean something to the server or to us."""
    if isinstance(headers, Block):
        return headers.senders()
    return {
        str(name): value if isinstance(value, str) else ", ".join(map(str, value))
        for name, value in (headers or {}).items()
        if is_senders(str(name))
    }


def checked(message: Outgoing, limit: int) -> str:
    """Its header lines; raises `InvalidMessage` or `TooLarge` for what must not reach the wire."""
    check_subject(message.subject)
    lines = checked_lines(message.headers)
    check_value("the id", message.id)
    size = len(message.body) + len(message.subject) + len(lines)
    if size > limit:
        raise TooLarge(size, limit)
    if len(lines) > MAX_HEADERS:
        raise InvalidMessage(
            f"the headers have {len(lines):,} bytes, the limit is {MAX_HEADERS:,}: put it into the body"
        )
    if message.not_before is not None and not message.not_before < FAR:
        raise InvalidMessage(f"{message.subject}: a message cannot wait until {message.not_before!r}")
    return lines


def checked_lines(headers: Headers) -> str:
    """Headers as they are sent, ASCII; raises `InvalidMessage` for one that would not arrive as it is."""
    names, values = tuple(headers), tuple(headers.values())
    lines = _usual.get(names)
    if lines is None or not _is_plain("".join(values)):
        for name, value in headers.items():
            if not _NAME.match(name) or name.lower().startswith("nats-"):
                raise InvalidMessage(
                    f"{name[:80]!r} is not a header name: use letters, digits and '-', and none that begins with "
                    "'Nats-'"
                )
            check_value(f"the header {name}", value)
        lines = "".join([f"{name}: %s\r\n" for name in names])
        if len(_usual) < _USUAL:
            _usual[names] = lines
    return lines % values


def check_value(what: str, value: str) -> None:
    if not _is_plain(value) and (not _VALUE.match(value) or value != value.strip()):
        raise InvalidMessage(f"{what} has the value {value[:80]!r}: only printable ASCII without blanks at the ends")


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable() and " " not in value


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds(text: str) -> float:
    """A server's time, which has up to nine digits after the point."""
    head, _, fraction = text.rstrip("Z").partition(".")
    whole = int(datetime.fromisoformat(f"{head}+00:00").timestamp())
    # By way of nanoseconds, as in acknowledgement subjects: the same moment gives the same number.
    return (whole * 1_000_000_000 + int(fraction.ljust(9, "0"))) / 1e9


class Origin(msgspec.Struct, omit_defaults=True):
    """What an inbox message or a dead letter says of the entry it stands for."""

    subject: str
    time: float
    odd: dict[str, str] = {}
    """Headers of a foreign sender that cannot be sent as they are."""
    reference: bool = False
    """Body and headers were too large to copy: they stand in the log only."""
    edited: int | None = None
    """Bytes of the body that somebody gave it; the original follows them."""
    replay: str = ""
    death: Death | None = None
    parked: Parked | None = None
    dropped: bool = False
    """See `Delivery.dropped`."""


class Death(msgspec.Struct, omit_defaults=True):
    reason: Reason
    attempts: int
    died: float
    failure: Failure
    inbox: int = 0
    """Sequence of the inbox message it died from; 0 when it came from the log itself."""


class Parked(msgspec.Struct):
    behind: int
    """Position of what it waits behind."""
    inbox: int
    """As in `Death`."""


UNNOTED: Final = 2
"""Times that a message is handed back without a note: it costs a write, and so few make nobody suspicious."""


class Attempts(msgspec.Struct):
    """The attempt register's entry: what a group has tried on one message."""

    attempts: int
    until: float
    """Not again before, seconds since 1970."""
    failure: Failure = Failure("", "")
    """The last one; not kept when the message is begun alone, or handed back from there, or has come back often."""
    crashes: int = 0
    """Beginnings without an end; the one that is under way counts."""
    returned: int = 0
    """Deliveries that were handed back in good order, as far as it was noted."""


class Token(msgspec.Struct, eq=False, gc=False):
    """Where a delivery is settled."""

    reply: str
    inbox: int
    """Sequence of the inbox message it was delivered from; 0 for the log itself."""
    reference: bool = False
    """Body and headers have still to be read from the log."""
    first: bytes | None = None
    """The body as it was published, if it was delivered with another one."""
    settled: bool = False
    replay: str = ""
    dropped: bool = False
    begun: bool = False
    """The register says that it runs alone: to be taken back with the outcome."""


def direct_entry(frame: Frame) -> Entry:
    """The entry in the answer to a direct get."""
    return Entry(
        int(frame.header("Nats-Sequence")),
        frame.header("Nats-Subject"),
        seconds(frame.header("Nats-Time-Stamp")),
        clean(frame.headers),
        frame.body,
    )


def copied(entry: Entry, origin: Origin, room: int, first: bytes | None = None) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a message that carries an entry along; only a reference when it would be too large.

    With the `first` body of one that was edited it carries both, and `check_edited` has seen to it that they fit.
    """
    safe: dict[str, str] = {}
    for name, value in entry.headers.items():
        if _NAME.match(name) and _VALUE.match(value) and value == value.strip():
            safe[name] = value
        else:
            origin.odd[name] = value
    if first is not None:
        origin.edited = len(entry.body)
        return entry.body + first, safe | {ORIGIN: _ascii(origin)}
    text = _ascii(origin)
    size = sum(len(name) + len(value) + 4 for name, value in safe.items()) + len(text) + 512
    if size > MAX_HEADERS + _ROOM or size + len(entry.body) > room:
        origin = replace(origin, odd={}, reference=True)
        return b"", {ORIGIN: _ascii(origin)}
    return entry.body, safe | {ORIGIN: text}


def check_edited(entry: Entry, first: bytes, room: int) -> None:
    """Raise `TooLarge` unless an edited entry and its first body fit into one message, whatever it dies of next."""
    headers = sum(len(name) + len(value) + 4 for name, value in entry.headers.items())
    size, limit = len(entry.body) + len(first) + headers, room - 2 * _ROOM
    if size > limit:
        raise TooLarge(size, limit)


def refers(headers: Headers) -> bool:
    """Whether `copied` made a reference: the entry has to stay in the log."""
    return '"reference":true' in headers[ORIGIN]


def origin_of(frame: Frame) -> Origin:
    return msgspec.json.decode(frame.header(ORIGIN), type=Origin)


def original(position: int, origin: Origin, headers: Mapping[str, Any] | None, body: bytes) -> Entry:
    """The entry that was copied into an inbox or a dead letter."""
    return Entry(position, origin.subject, origin.time, {**clean(headers), **origin.odd}, body[: origin.edited])


def first_body(origin: Origin, body: bytes) -> bytes | None:
    """The body as it was published, of what was edited."""
    return None if origin.edited is None else body[origin.edited :]


def death_of(delivery: Delivery, reason: Reason, attempts: int, failure: Failure, now: float) -> Origin:
    entry = delivery.entry
    death = Death(reason, attempts, now, shortened(failure), delivery.token.inbox)
    return Origin(entry.subject, entry.time, death=death, replay=delivery.replay)


def parking_of(delivery: Delivery, behind: int) -> Origin:
    entry, parked = delivery.entry, Parked(behind, delivery.token.inbox)
    return Origin(entry.subject, entry.time, parked=parked, replay=delivery.replay, dropped=delivery.dropped)


def dead_letter(group: str, entry: Entry, death: Death, first: bytes | None, replay: str) -> DeadLetter:
    return DeadLetter(group, entry, death.reason, death.failure, death.attempts, death.died, first, replay)


def shortened(failure: Failure, room: int = _ROOM - 2048) -> Failure:
    """The failure within `room` bytes of JSON: the traceback keeps its end, which says most."""
    short = replace(
        failure,
        error=failure.error[:200],
        message=failure.message[:1000],
        traceback="",
        handler=failure.handler[:200],
        host=failure.host[:200],
        version=failure.version[:200],
    )
    if len(_ascii(short)) > room:  # text of which each character takes six or twelve bytes
        short = replace(short, **{name: getattr(short, name)[:100] for name in ("error", "message", "handler", "host")})
    trace = failure.traceback
    while len(_ascii(full := replace(short, traceback=trace))) > room:
        keep = len(trace) * 3 // 4
        trace = f"...\n{trace[-keep:]}" if keep > 100 else ""
    return full


def _ascii(value: Any) -> str:
    """JSON of nothing but printable ASCII, as a header value must be."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=True, separators=(",", ":")).replace("\x7f", "\\u007f")
