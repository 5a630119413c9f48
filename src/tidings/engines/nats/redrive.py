"""Dead letters: listing, putting back, discarding."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from ...engine import DeadLetter
from ...errors import EngineUnavailable, Unconfirmed
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect, read_ack
from .connection import Frame
from .groups import Groups
from .layout import Layout
from .link import Disconnected
from .settle import TOMBSTONE
from .wire import Origin, copied, dead_letter, origin_of, original

_CHUNK: Final = 100
_INCOMPLETE: Final = (10176, 10210, 10174, 10199)


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

    async def letters(self, group: str | None, after: int, limit: int) -> list[DeadLetter]:
        """See `Engine.dead_letters`. A page never ends between two groups' letters of one position."""
        found = await self._js.subjects(self._layout.control, self._layout.dead(group or "*", "*"))
        places = sorted((int(position), name) for name, position in (subject.split(".")[-2:] for subject in found))
        places = [place for place in places if place[0] > after]
        letters: list[DeadLetter] = []
        for begin in range(0, len(places), _CHUNK):
            for buried in await self._look([(name, position) for position, name in places[begin : begin + _CHUNK]]):
                if buried is None:
                    continue
                if len(letters) >= limit and buried.letter.entry.position != letters[-1].entry.position:
                    return letters
                letters.append(buried.letter)
        return letters

    async def redrive(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.redrive`."""
        moved = 0
        for begin in range(0, len(letters), _CHUNK):
            moved += await self._move(await self._same(letters[begin : begin + _CHUNK]))
        return moved

    async def discard(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.discard`."""
        removed = 0
        for begin in range(0, len(letters), _CHUNK):
            there = await self._same(letters[begin : begin + _CHUNK])
            gone = await asyncio.gather(
                *(self._js.delete_message(self._layout.control, buried.sequence) for buried in there)
            )
            removed += sum(gone)
        return removed

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
        origin = origin_of(frame) if frame is not None and frame.header("Tidings-Origin") else None
        if frame is None or origin is None or origin.death is None:
            return None  # nothing, or the tombstone of one that was put back
        entry = original(position, origin, frame.headers, frame.body)
        if origin.reference:
            entry = await self._groups.logged(entry)
        letter = dead_letter(group, entry, origin.death)
        return Buried(letter, int(frame.header("Nats-Sequence")), origin.death.inbox)

    async def _move(self, buried: list[Buried]) -> int:
        """Put back in one atomic batch; when one of them was moved by somebody else, in halves without it."""
        if not buried:
            return 0
        try:
            last = await self._batch(buried)
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            if len(buried) == 1:
                return await self._move_without_inbox(buried[0])
            half = len(buried) // 2
            return await self._move(buried[:half]) + await self._move(buried[half:])
        if last:
            # The tombstones would go by themselves after a second; until then they would be counted.
            await asyncio.gather(
                *(self._js.purge(self._layout.control, self._dead(one), below=last + 1) for one in buried)
            )
        return len(buried)

    async def _move_without_inbox(self, one: Buried) -> int:
        """The inbox message it died from may have been tidied away; nobody can have put it back then."""
        group, position = one.letter.group, one.letter.entry.position
        if one.inbox == 0 or await self._js.message(self._layout.control, self._layout.inbox(group, position)):
            return 0
        return await self._move([msgspec.structs.replace(one, inbox=0)])

    async def _batch(self, buried: list[Buried]) -> int:
        """Store inbox messages and tombstones together; returns the last sequence, or 0 when an earlier try did it."""
        loop = asyncio.get_running_loop()
        until, why, ids = loop.time() + self._js.timeout, "no answer in time", set[str]()
        while (left := until - loop.time()) > 0:
            id = secrets.token_hex(8)
            try:
                await self._js.link.ready(left)
                ids.add(id)
                async with asyncio.timeout(max(left / 2, 0.1)):
                    ack = read_ack(await self._send(buried, id))
                if ack is not None:
                    return ack.seq
                why = "the stream has no leader"
            except Disconnected as error:
                why = str(error)
            except TimeoutError:
                why = "no answer in time"
            except ApiError as error:
                if error.code == WRONG_SEQUENCE and len(ids) > 1 and await self._done(buried[0], ids):
                    return 0
                if error.code not in _INCOMPLETE:
                    raise
                why = str(error)
            await asyncio.sleep(0.05)
        if not ids:
            raise EngineUnavailable(f"nothing was put back: {why}")
        raise Unconfirmed(f"{len(buried)} dead letters may have been put back or not: {why}. Look, and repeat")

    async def _send(self, buried: list[Buried], id: str) -> Frame:
        """Write the batch; only its last message asks for an answer."""
        layout, link = self._layout, self._js.link
        messages: list[tuple[str, bytes, dict[str, str]]] = []
        for one in buried:
            group, entry = one.letter.group, one.letter.entry
            body, headers = copied(entry, Origin(entry.subject, entry.time), link.max_payload)
            messages += [
                (layout.inbox(group, entry.position), body, headers | expect(one.inbox)),
                (layout.attempts(group, entry.position), b"", TOMBSTONE),
                (self._dead(one), b"", TOMBSTONE | expect(one.sequence)),
            ]
        for number, (subject, body, headers) in enumerate(messages, 1):
            batch = {"Nats-Batch-Id": id, "Nats-Batch-Sequence": str(number)}
            if number == len(messages):
                return await (await link.ask(subject, body, headers | batch | {"Nats-Batch-Commit": "1"}))
            await link.publish(subject, body, headers | batch)
        raise AssertionError("a batch has at least one message")

    async def _done(self, one: Buried, ids: set[str]) -> bool:
        """Whether an earlier try, whose answer was lost, has put it back."""
        inbox = await self._js.message(
            self._layout.control, self._layout.inbox(one.letter.group, one.letter.entry.position)
        )
        return inbox is not None and inbox.header("Nats-Batch-Id") in ids

    def _dead(self, one: Buried) -> str:
        return self._layout.dead(one.letter.group, one.letter.entry.position)
