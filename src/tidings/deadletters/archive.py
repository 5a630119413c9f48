"""Dead letters as lines of JSON, out of a namespace and back into it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ..engine import DeadLetter, Engine, Entry, Failure, Reason
from ..errors import InvalidMessage

_AT_ONCE: Final = 16


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line. A body is text where it is UTF-8, else base64: both come back byte for byte."""

    group: str
    position: int
    subject: str
    time: float
    headers: dict[str, str]
    body: dict[str, str]
    reason: Reason
    failure: Failure
    attempts: int
    died: float
    original: dict[str, str] | None = None
    replay: str = ""


class Restored(msgspec.Struct, frozen=True):
    """What became of letters that were to be stored again."""

    stored: int
    there: int
    """Dead letters already."""
    refused: tuple[str, ...] = ()
    """A sentence for each that was not stored."""


def to_line(letter: DeadLetter) -> str:
    """The letter as one line of ASCII, without the line's end."""
    entry = letter.entry
    line = _Line(
        letter.group,
        entry.position,
        entry.subject,
        entry.time,
        dict(entry.headers),
        _written(entry.body),
        letter.reason,
        letter.failure,
        letter.attempts,
        letter.died,
        None if letter.original is None else _written(letter.original),
        letter.replay,
    )
    return json.dumps(msgspec.to_builtins(line))


def to_letter(text: str) -> DeadLetter:
    """The letter of a line; raises `InvalidMessage`."""
    try:
        line = msgspec.convert(json.loads(text), _Line)
        entry = Entry(line.position, line.subject, line.time, line.headers, _read(line.body))
        original = None if line.original is None else _read(line.original)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise InvalidMessage(f"not a dead letter as `tidings dlq export` writes it: {error}") from error
    more = original, line.replay
    return DeadLetter(line.group, entry, line.reason, line.failure, line.attempts, line.died, *more)


async def restore(engine: Engine, letters: Sequence[DeadLetter]) -> Restored:
    """Store the letters that are not there; doing it again changes nothing.

    A letter is refused where its position in this log is another message, or where its group has the message still
    (or again) to handle: it would be handled twice.
    """
    last = (await engine.stats()).last
    gate = asyncio.Semaphore(_AT_ONCE)

    async def checked(letter: DeadLetter) -> str | None:
        async with gate:
            return await _hindrance(engine, letter, last)

    hindrances = await asyncio.gather(*map(checked, letters))
    free = [letter for letter, why in zip(letters, hindrances, strict=True) if why is None]
    stored = await engine.bury(free) if free else 0
    refused = tuple(
        f"{letter.key}: {why}" for letter, why in zip(letters, hindrances, strict=True) if why and why != _THERE
    )
    return Restored(stored, len(letters) - len(refused) - stored, refused)


_THERE: Final = "there"


async def _hindrance(engine: Engine, letter: DeadLetter, last: int) -> str | None:
    """Why it cannot be stored; None when it can."""
    entry = letter.entry
    page = await engine.read([">"], entry.position - 1, 1)
    logged = page[0] if page and page[0].position == entry.position else None
    body = entry.body if letter.original is None else letter.original
    same = logged is None or (logged.subject, logged.time, logged.body) == (entry.subject, entry.time, body)
    if not 0 < entry.position <= last or not same:
        return "that position of this log is another message: the file comes from another namespace"
    state = (await engine.states(entry)).get(letter.group)
    if state is None:
        return f"there is no group {letter.group}: start its worker once"
    if state.state == "dead":
        return _THERE
    if state.state not in ("done", "not wanted"):
        return f"the group has it still to handle ({state.state})"
    return None


def _written(body: bytes) -> dict[str, str]:
    try:
        return {"text": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode("ascii")}


def _read(body: dict[str, Any]) -> bytes:
    [(kind, value)] = body.items()
    if kind == "text":
        return str(value).encode("utf-8")
    if kind != "base64":
        raise ValueError(f"a body is text or base64, not {kind!r}")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
