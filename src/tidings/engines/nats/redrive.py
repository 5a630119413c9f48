"""Dead letters: listing, putting back, discarding, amending."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from ...engine import DeadLetter
from ...errors import Conflict, TooLarge
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect
from .connection import Frame
from .groups import Groups
from .headers import ORIGIN
from .layout import Layout
from .places import Places
from .putback import CHUNK, Move, PutBack, batched
from .wire import Death, Origin, check_edited, copied, dead_letter, first_body, origin_of, original, refers

_PAGE_BYTES: Final = 8 * 1024 * 1024
_ROLLUP: Final = {"Nats-Rollup": "sub"}


class Buried(msgspec.Struct):
    """A dead letter as it is stored now."""

    letter: DeadLetter
    sequence: int
    inbox: int
    """Sequence that the last inbox message must still have for it to be put back."""


class Graveyard:
    def __init__(self, js: JetStream, layout: Layout, groups: Groups) -> None:
        self._js = js
        self._layout = layout
        self._groups = groups
        self._back = PutBack(js, layout)
        self._places: Places | None = None

    async def letters(self, group: str | None, after: int, limit: int) -> list[DeadLetter]:
        """See `Engine.dead_letters`. A page never ends between two groups' letters of one position."""
        places = self._places
        if places is None or places.filter != self._layout.dead(group or "*", "*") or not after:
            places = self._places = Places(self._js, self._layout.control, self._layout.dead(group or "*", "*"))
        letters: list[DeadLetter] = []
        size = 0
        await places.look()
        for chunk in places.behind(after, min(CHUNK, limit + 1)):
            for buried in await self._look(chunk):
                if buried is None:
                    continue
                full = len(letters) >= limit or size > _PAGE_BYTES
                if full and buried.letter.entry.position != letters[-1].entry.position:
                    return letters
                letters.append(buried.letter)
                size += len(buried.letter.entry.body)
        return letters

    async def redrive(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.redrive`."""
        return await self._all_back(letters, dropped=False)

    async def discard(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.discard`."""
        removed, ordered = (
            0,
            {name for name in {letter.group for letter in letters} if await self._groups.ordered(name)},
        )
        told = [letter for letter in letters if letter.group in ordered]
        for chunk in batched([letter for letter in letters if letter.group not in ordered], CHUNK):
            there = await self._same(chunk)
            gone = await asyncio.gather(
                *(self._js.delete_message(self._layout.control, buried.sequence) for buried in there)
            )
            removed += sum(gone)
        return removed + await self._all_back(told, dropped=True)

    async def _all_back(self, letters: Sequence[DeadLetter], *, dropped: bool) -> int:
        moved = 0
        for chunk in batched(letters, CHUNK):
            moved += await self._back.move([self._move(buried, dropped) for buried in await self._same(chunk)])
        return moved

    def _move(self, buried: Buried, dropped: bool) -> Move:
        letter, entry = buried.letter, buried.letter.entry
        origin = Origin(entry.subject, entry.time, replay=letter.redriven_as, dropped=dropped)
        subject = self._layout.dead(letter.group, entry.position)
        place = subject, buried.sequence, buried.inbox
        return Move(letter.group, entry, origin, letter.original, *place, afresh=True)

    async def amend(self, letter: DeadLetter, body: bytes) -> bool:
        """See `Engine.amend`."""
        place = (letter.group, letter.entry.position)
        [found] = await self._look([place])
        if found is None or found.letter.died != letter.died or found.letter.entry.body != letter.entry.body:
            return False
        first = letter.entry.body if found.letter.original is None else found.letter.original
        wanted = replace(found.letter, entry=replace(found.letter.entry, body=body), original=first)
        check_edited(wanted.entry, first, self._js.link.max_payload)
        try:
            await self._store(wanted, found.inbox, found.sequence)
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            [found] = await self._look([place])  # an earlier try may have done it, whose answer was lost
            return found is not None and found.letter == wanted
        return True

    async def bury(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.bury`."""
        for group in {letter.group for letter in letters}:
            if await self._js.consumer(self._layout.events, group) is None:
                raise Conflict(f"group {group!r} is not declared: start its worker once, or it was removed meanwhile")
        buried = 0
        for chunk in batched(letters, CHUNK):
            buried += sum(await asyncio.gather(*map(self._bury, chunk)))
        return buried

    async def _bury(self, letter: DeadLetter) -> bool:
        control, group, position = self._layout.control, letter.group, letter.entry.position
        there = await self._js.message(control, self._layout.dead(group, position))
        if there is not None and there.header(ORIGIN):
            return False
        inbox = await self._js.message(control, self._layout.inbox(group, position))
        try:
            await self._store(letter, _sequence(inbox), _sequence(there))
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            return False
        return True

    async def _store(self, letter: DeadLetter, inbox: int, sequence: int) -> None:
        """Write the letter if the last message of its subject is still `sequence`."""
        entry, room = letter.entry, self._js.link.max_payload
        death = Death(letter.reason, letter.attempts, letter.died, letter.failure, inbox)
        origin = Origin(entry.subject, entry.time, replay=letter.replay, death=death)
        body, headers = copied(entry, origin, room, letter.original)
        if refers(headers):
            raise TooLarge(len(entry.body), room)
        subject = self._layout.dead(letter.group, entry.position)
        await self._js.store(subject, body, headers | _ROLLUP | expect(sequence))

    async def look(self, group: str, position: int) -> DeadLetter | None:
        buried = (await self._look([(group, position)]))[0]
        return buried.letter if buried else None

    async def _same(self, letters: Sequence[DeadLetter]) -> list[Buried]:
        """Those of the letters that are still there, and did not die again since they were read."""
        unique = list({letter.key: letter for letter in letters}.values())
        found = await self._look([(letter.group, letter.entry.position) for letter in unique])
        return [
            buried
            for letter, buried in zip(unique, found, strict=True)
            if buried is not None and buried.letter.died == letter.died
        ]

    async def _look(self, places: Sequence[tuple[str, int]]) -> list[Buried | None]:
        subjects = [self._layout.dead(group, position) for group, position in places]
        asked = [await self._js.ask_last(self._layout.control, subject) for subject in subjects]
        found: list[Buried | None] = []
        for (group, position), subject, question in zip(places, subjects, asked, strict=True):
            frame = await self._js.found(question, self._layout.control, subject)
            found.append(await self._read(group, position, frame))
        return found

    async def _read(self, group: str, position: int, frame: Frame | None) -> Buried | None:
        origin = origin_of(frame) if frame is not None and frame.header(ORIGIN) else None
        if frame is None or origin is None or origin.death is None:
            return None  # nothing, or the tombstone of one that was put back
        entry = original(position, origin, frame.headers, frame.body)
        if origin.reference:
            entry = await self._groups.logged(entry)
        letter = dead_letter(group, entry, origin.death, first_body(origin, frame.body), origin.replay)
        return Buried(letter, int(frame.header("Nats-Sequence")), origin.death.inbox)


def _sequence(frame: Frame | None) -> int:
    return int(frame.header("Nats-Sequence")) if frame is not None else 0
