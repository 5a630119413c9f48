"""Put messages back into a group's inbox: each leaves where it stands and arrives there in one atomic step."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from ...engine import Entry
from ...errors import EngineUnavailable, StoreFull, Unconfirmed
from .api import WRONG_SEQUENCE, ApiError, JetStream, expect, read_ack
from .connection import Frame
from .layout import Layout
from .link import Disconnected
from .settle import TOMBSTONE
from .wire import Origin, copied

CHUNK: Final = 100
"""Messages that are put back together, at most."""
_INCOMPLETE: Final = (10176, 10210, 10174, 10199)

T = TypeVar("T")


class Move(msgspec.Struct):
    """One message on its way back."""

    group: str
    entry: Entry
    origin: Origin
    """What the inbox message says of it."""
    first: bytes | None
    """The body as it was published, if the entry has another one."""
    subject: str
    """Where it stands now."""
    sequence: int
    """Of the message there, which must still be this one."""
    inbox: int
    """Sequence that the last inbox message must still have."""
    afresh: bool
    """Whether its attempts are forgotten."""


class PutBack:
    def __init__(self, js: JetStream, layout: Layout) -> None:
        self._js = js
        self._layout = layout

    async def move(self, moves: Sequence[Move]) -> int:
        """Put them back in this order; returns how many. One that was moved by somebody else is left out: the batch
        is repeated in halves without it."""
        if not moves:
            return 0
        try:
            last = await self._batch(moves)
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:
                raise
            if len(moves) == 1:
                return await self._move_alone(moves[0])
            half = len(moves) // 2
            return await self.move(moves[:half]) + await self.move(moves[half:])
        if last:
            await self._clear(_tombstones(moves, last))
        else:
            await self._finish(moves)
        return len(moves)

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

    async def _move_alone(self, one: Move) -> int:
        """One whose inbox is not what it was."""
        subject = self._layout.inbox(one.group, one.entry.position)
        cleared = [await self._js.clear(place) for place in (subject, one.subject)]
        if any(cleared):
            return await self.move([one])
        inbox = await self._js.message(self._layout.control, subject)
        if inbox is not None and int(inbox.header("Nats-Sequence")) > one.inbox:
            await self._finish([one])
            return 0
        # The inbox message it came from may have been tidied away; nobody can have put it back then.
        return await self.move([replace(one, inbox=0)]) if inbox is None and one.inbox else 0

    async def _finish(self, ghosts: Sequence[Move]) -> None:
        """Remove, where they stood, messages that have been put back. A server that is killed while it stores a batch
        completes it when it is started again, but what was just being replaced may be there once more."""
        for one in ghosts:
            await self._js.delete_message(self._layout.control, one.sequence)

    async def _batch(self, moves: Sequence[Move]) -> int:
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
                    ack = read_ack(await self._send(moves, id))
                if ack is not None:
                    return ack.seq
                why = "the stream has no leader"
            except Disconnected as error:
                why = str(error)
            except TimeoutError:
                why = "no answer in time"
            except ApiError as error:
                if error.code == WRONG_SEQUENCE and len(ids) > 1 and await self._done(moves[0], ids):
                    return 0
                if error.code not in _INCOMPLETE:
                    raise
                why = str(error)
            await asyncio.sleep(0.05)
        if not ids:
            raise EngineUnavailable(f"nothing was put back: {why}")
        raise Unconfirmed(f"{len(moves)} messages may have been put back or not: {why}. Look, and repeat")

    async def _send(self, moves: Sequence[Move], id: str) -> Frame:
        """Write the batch; only its last message asks for an answer."""
        layout, link = self._layout, self._js.link
        messages: list[tuple[str, bytes, dict[str, str]]] = []
        for one in moves:
            body, headers = copied(one.entry, one.origin, link.max_payload, one.first)
            place = one.group, one.entry.position
            messages.append((layout.inbox(*place), body, headers | expect(one.inbox)))
            if one.afresh:
                messages.append((layout.attempts(*place), b"", TOMBSTONE))
            messages.append((one.subject, b"", TOMBSTONE | expect(one.sequence)))
        for number, (subject, body, headers) in enumerate(messages, 1):
            batch = {"Nats-Batch-Id": id, "Nats-Batch-Sequence": str(number)}
            if number == len(messages):
                return await (await link.ask(subject, body, headers | batch | {"Nats-Batch-Commit": "1"}))
            await link.publish(subject, body, headers | batch)
        raise AssertionError("a batch has at least one message")

    async def _done(self, one: Move, ids: set[str]) -> bool:
        """Whether an earlier try, whose answer was lost, has put it back."""
        inbox = await self._js.message(self._layout.control, self._layout.inbox(one.group, one.entry.position))
        return inbox is not None and inbox.header("Nats-Batch-Id") in ids


def _tombstones(moves: Sequence[Move], last: int) -> list[int]:
    """Sequences of what the batch that ended with `last` has left where they stood: each one's last message."""
    found = []
    for one in reversed(moves):
        found.append(last)
        last -= 3 if one.afresh else 2
    return found


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of `size` items."""
    return (items[begin : begin + size] for begin in range(0, len(items), size))
