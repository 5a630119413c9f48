"""What groups have set aside: dead letters and what people do to them, and the parked of ordered groups. Each act is
one step at the server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from ...engine import DeadLetter, Entry, Outgoing
from ...errors import TooLarge, Unconfirmed
from .codec import MAX_MESSAGE, PAGE, check, entry_of, letter_of, packed
from .link import Link

_AT_ONCE: Final = 200


class Graveyard:
    def __init__(self, link: Link) -> None:
        self._link = link

    async def letters(self, group: str | None, after: int, limit: int) -> list[DeadLetter]:
        """See `Engine.dead_letters`."""
        found = await self._link.call("letters", group or "", after, limit, PAGE)
        return [letter_of(raw) for raw in found]

    async def redrive(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.redrive`."""
        return await self._act("redrive", letters)

    async def discard(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.discard`."""
        return await self._act("discard", letters)

    async def amend(self, letter: DeadLetter, body: bytes) -> bool:
        """See `Engine.amend`."""
        entry = letter.entry
        first = entry.body if letter.original is None else letter.original
        size = check(Outgoing(entry.subject, body, dict(entry.headers), "")) + len(first)
        if size > MAX_MESSAGE:
            raise TooLarge(size, MAX_MESSAGE)
        place = letter.group, entry.position, repr(letter.died)
        return bool(await self._link.call("amend", *place, entry.body, body, doubt=Unconfirmed))

    async def bury(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.bury`."""
        stored = 0
        for some in _portions(letters, lambda letter: len(letter.entry.body) + len(letter.original or b"")):
            stored += await self._link.call(
                "bury", *(part for letter in some for part in _whole(letter)), doubt=Unconfirmed
            )
        return stored

    async def replay(self, group: str, entries: Sequence[Entry], id: str) -> int:
        """See `Engine.replay`."""
        given = 0
        for some in _portions(entries, lambda entry: len(entry.body)):
            told = (part for entry in some for part in _told(entry))
            given += await self._link.call("replay", group, id, *told, doubt=Unconfirmed)
        return given

    async def parked(self, group: str, after: int, limit: int) -> list[Entry]:
        """See `Engine.parked`."""
        return [entry_of(*raw) for raw in await self._link.call("parked", group, after, limit)]

    async def unpark(self, group: str, positions: Sequence[int]) -> int:
        """See `Engine.unpark`."""
        return int(await self._link.call("unpark", group, *positions, doubt=Unconfirmed)) if positions else 0

    async def _act(self, name: str, letters: Sequence[DeadLetter]) -> int:
        done = 0
        for begin in range(0, len(letters), _AT_ONCE):
            some = letters[begin : begin + _AT_ONCE]
            told = (part for x in some for part in (x.group, x.entry.position, repr(x.died)))
            done += await self._link.call(name, *told, doubt=Unconfirmed)
        return done


def _portions(things: Sequence[Any], size: Any) -> Iterator[list[Any]]:
    """What fits into one call."""
    some: list[Any] = []
    weight = 0
    for thing in things:
        if some and (len(some) >= _AT_ONCE or weight + size(thing) > PAGE):
            yield some
            some, weight = [], 0
        some.append(thing)
        weight += size(thing)
    if some:
        yield some


def _told(entry: Entry) -> tuple[Any, ...]:
    return entry.position, entry.subject, f"{entry.time:.6f}", packed(entry.headers), entry.body


def _whole(letter: DeadLetter) -> tuple[Any, ...]:
    first = ("0", b"") if letter.original is None else ("1", letter.original)
    failure = msgspec.json.encode(letter.failure)
    end = letter.reason, failure, letter.attempts, repr(letter.died), letter.replay
    return (letter.group, *_told(letter.entry), *first, *end)
