"""What goes over the wire: frames of server-sent events, and ids that name a place in a log."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from ..engine import Entry
from ..message import Message
from ..watching.failures import Failed
from ..watching.hub import Hub

_BREAKS: Final = re.compile(r"[\r\n\0\u0085\u2028\u2029]")


def frame(event: str, data: object, *, id: str | None = None, retry: int | None = None) -> bytes:
    """One event. Whatever the values hold, it stays one: names and ids lose line breaks, data is JSON in one line."""
    lines = [f"event: {_BREAKS.sub('', event)}".encode("utf-8", "replace")]
    if id is not None:
        lines.append(f"id: {_BREAKS.sub('', id)}".encode("utf-8", "replace"))
    if retry is not None:
        lines.append(b"retry: %d" % retry)
    lines.append(b"data: " + msgspec.json.encode(data))
    return b"\n".join(lines) + b"\n\n"


def event_frame(hub: Hub, entry: Entry, message: Message[Any]) -> bytes:
    """What a browser is told of an event."""
    data = {
        "id": message.id,
        "subject": message.subject,
        "time": message.time.isoformat(timespec="milliseconds"),
        "position": message.position,
        "correlation": message.correlation_id,
        "causation": message.causation_id,
        "data": msgspec.json.decode(entry.body),
    }
    return frame(entry.subject, data, id=event_id(hub, entry.position))


def outcome_frame(failed: Failed) -> bytes:
    """What a browser is told of a failure. It carries no id: resuming goes by the log, failures are asked for."""
    return frame("outcome", failed)


def event_id(hub: Hub, position: int) -> str:
    return f"{hub.log_id}-{position}"


def position_of(given: str, hub: Hub, oldest: int, newest: int) -> int | None:
    """The position an id stands for, if everything behind it is still stored."""
    log_id, _, number = given.partition("-")
    if log_id != hub.log_id or not is_number(number):
        return None
    position = int(number)
    return position if oldest <= position <= newest else None


def is_number(text: str) -> bool:
    """Whether it is a position as we write it."""
    return text.isascii() and text.isdigit() and len(text) < 19
