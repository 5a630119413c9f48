"""Dead letters: listing, putting back, discarding, amending."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from ...engine import DeadLetter
from ...errors import Conflict, EngineUnavailable, StoreFull, TooLarge, Unconfirmed
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect, read_ack
from .connection import Frame
from .groups import Groups
from .headers import ORIGIN
from .layout import Layout
from .link import Disconnected
from .places import Places
from .settle import TOMBSTONE
from .wire import Death, Origin, check_edited, copied, dead_letter, first_body, origin_of, original, refers

_CHUNK: Final = 100
_PAGE_BYTES: Final = 8 * 1024 * 1024
_ROLLUP: Final = {"Nats-Rollup": "sub"}
_INCOMPLETE: Final = (10176, 10210, 10174, 10199)


T = TypeVar("T")


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
        self._places: Places | None = None

    async def letters(self, group: str | None, after: int, limit: int) -> list[DeadLetter]:
        """See `Engine.dead_letters`. A page never ends between two groups' letters of one position."""
        places = self._places
        if places is None or places.filter != self._layout.dead(group or "*", "*") or not after:
            places = self._places = Places(self._js, self._layout.control, self._layout.dead(group or "*", "*"))
        letters: list[DeadLetter] = []
        size = 0
        await places.look()
        for chunk in places.behind(after, min(_CHUNK, limit + 1)):
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
        moved = 0
        for chunk in batched(letters, _CHUNK):
            moved += await self._move(await self._same(chunk))
        return moved

    async def discard(self, letters: Sequence[DeadLetter]) -> int:
        """See `Engine.discard`."""
        removed = 0
        for chunk in batched(letters, _CHUNK):
            there = await self._same(chunk)
            gone = await asyncio.gather(
                *(self._js.delete_message(self._layout.control, buried.sequence) for buried in there)
            )
            removed += sum(gone)
        return removed

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
        for chunk in batched(letters, _CHUNK):
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
                return await self._move_alone(buried[0])
            half = len(buried) // 2
            return await self._move(buried[:half]) + await self._move(buried[half:])
        if last:
            await self._clear(range(last - 3 * len(buried) + 3, last + 1, 3))
        else:
            await self._finish(await self._same([one.letter for one in buried]))
        return len(buried)

    async def _clear(self, tombstones: Iterable[int]) -> None:
        """Delete tombstones: they would go by themselves after a second, and until then they would be counted."""
        verb = f"$JS.API.STREAM.MSG.DELETE.{self._layout.control}"
        with contextlib.suppress(Disconnected, TimeoutError):
            async with asyncio.timeout(self._js.timeout):
                asked = [
                    await self._js.link.ask(verb, msgspec.json.encode({"seq": sequence, "no_erase": True}))
                    for sequence in tombstones
                ]
                await asyncio.gather(*asked)

    async def _move_alone(self, one: Buried) -> int:
        """One whose inbox is not what it was at the death."""
        group, position = one.letter.group, one.letter.entry.position
        inbox = await self._js.message(self._layout.control, self._layout.inbox(group, position))
        if _sequence(inbox) > one.inbox:
            await self._finish([one])
            return 0
        # The inbox message it died from may have been tidied away; nobody can have put it back then.
        return await self._move([replace(one, inbox=0)]) if inbox is None and one.inbox else 0

    async def _finish(self, ghosts: Sequence[Buried]) -> None:
        """Remove letters whose message has been put back. A server that is killed while it stores a batch completes it
        when it is started again, but a letter that was just being replaced may be there once more."""
        for one in ghosts:
            await self._js.delete_message(self._layout.control, one.sequence)

    async def _batch(self, buried: list[Buried]) -> int:
        """Store inbox messages and tombstones together; returns the last sequence, or 0 when an earlier try did it."""
        loop = asyncio.get_running_loop()
        until, why, ids = loop.time() + self._js.timeout, "no answer in time", set[str]()
        while (left := until - loop.time()) > 0:
            id = secrets.token_hex(8)
            try:
                await self._js.link.ready(left)
            except (EngineUnavailable, StoreFull) as error:
                if not ids:
                    raise
                why = str(error)
                break
            try:
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
            origin = Origin(entry.subject, entry.time, replay=one.letter.redriven_as)
            body, headers = copied(entry, origin, link.max_payload, one.letter.original)
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


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of `size` items."""
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _sequence(frame: Frame | None) -> int:
    return int(frame.header("Nats-Sequence")) if frame is not None else 0
