"""Messages on their way into the log: those of all callers travel together, and each is repeated until answered."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from typing import Final

from ...engine import Outgoing, Stored
from ...errors import Closed, EngineError, EngineUnavailable, StoreFull, TidingsError, Unconfirmed
from .api import Ack, read_ack
from .connection import Frame
from .layout import Layout
from .link import Disconnected, Link
from .outbound import Parcel
from .pace import Pace
from .wire import rfc3339

WINDOW: Final = 1024
"""Messages that are under way at the same time."""
LARGEST: Final = 1000
"""Messages of one batch: the server takes no more."""
_BYTES: Final = 4 * 1024 * 1024
"""Bytes under way at the same time; one message may always be."""
_PAUSES: Final = (0.02, 0.04, 0.08, 0.16, 0.32, 0.5)


_NONE: Final[list[Item]] = []


class Call(asyncio.Future[list[Stored]]):
    """One caller: its messages, and what became of them. It waits for the call itself; cancelling it is its going."""

    __slots__ = ("answers", "behind", "left", "sent", "until", "why")

    def __init__(self, items: list[Item], until: float) -> None:
        super().__init__()
        self.answers: list[Item | Stored] = items  # type: ignore[assignment]
        """Its messages, each replaced by where it is stored."""
        self.behind: list[Item] = _NONE
        """What has not queued up yet, the last one first: a large call takes its turn like others."""
        self.until = until
        self.left = len(items)
        """Messages without an answer."""
        self.sent = False
        """Whether any of them may have reached the server."""
        self.why = "no answer in time"

    def stored(self, index: int, place: Stored) -> None:
        if isinstance(self.answers[index], Item):
            self.answers[index] = place
            self.left -= 1
            if not self.left and not self.done():
                self.set_result(self.answers)  # type: ignore[arg-type]

    def fail(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)
            self.exception()  # whoever asked may have gone

    def give_up(self, patience: float) -> None:
        """Its time is over."""
        error: EngineError = EngineUnavailable(f"nothing was published: {self.why}")
        if self.sent:
            error = Unconfirmed(
                f"{self.left} of {len(self.answers)} messages were not confirmed within {patience:g} s ({self.why}): "
                "stored or not. Publishing again with the same ids is safe"
            )
        self.fail(error)


class Item:
    """One message of a call."""

    __slots__ = ("call", "index", "last", "late", "lines", "message", "size")

    def __init__(self, message: Outgoing, lines: str, now: float) -> None:
        self.call: Call
        self.index = 0
        self.message = message
        self.lines = lines
        """Its own headers as they are sent."""
        self.size = len(message.subject) + len(lines) + len(message.body)
        self.last = False
        """More of its call queue up when it leaves."""
        self.late = message.not_before is not None and message.not_before > now
        """It goes to Control and waits there. Decided once: a repeat by the other way would be stored again."""


class Flight:
    """Messages that are answered together: a single one, or an atomic batch, whose members never change."""

    __slots__ = ("due", "items", "reply", "sender", "size", "tries")

    def __init__(self, sender: Sender, items: tuple[Item, ...]) -> None:
        self.sender = sender
        self.items = items
        self.size = sum(item.size for item in items) if len(items) > 1 else items[0].size
        self.reply = ""
        self.due = 0.0
        """When an answer counts as lost."""
        self.tries = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return any(not item.call.done() for item in self.items)

    def arrived(self, answer: Frame | Exception) -> None:
        self.sender.answered(self, answer)


class Sender:
    """Takes the messages of all callers, sends those that wait in one write, and hands out the answers.

    The first message goes at once; what comes while it is on its way is next, together. At most `WINDOW` messages and
    `_BYTES` bytes are under way; the rest waits with its callers. Where single messages are dear (see `Pace`) more than
    a few that wait become one atomic batch, nothing else is sent until it is answered, and so the order in which they
    came is kept, also if it has to be taken apart: the server refuses a batch as a whole, with one known id in it or
    when too many are open, and then its messages go one by one.
    """

    def __init__(self, link: Link, layout: Layout, pace: Pace, patience: float) -> None:
        self._link = link
        self._layout = layout
        self._pace = pace
        self._patience = patience
        self._calls: dict[Call, None] = {}
        self._waiting: deque[Item] = deque()
        self._again: deque[Flight] = deque()
        self._flying: dict[Flight, None] = {}
        self._batch: Flight | None = None
        self._count = 0
        self._bytes = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Task[None] | None = None
        self._name = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def send(self, items: list[Item]) -> Call:
        """Store them; the list becomes the answer. Cancelled, what is under way may still be stored, and what is not
        is dropped."""
        call = Call(items, asyncio.get_running_loop().time() + self._patience)
        self._calls[call] = None
        for index, item in enumerate(items):
            item.call, item.index = call, index
        if len(items) <= LARGEST:
            self._waiting.extend(items)
        else:
            self._waiting.extend(items[:LARGEST])
            items[LARGEST - 1].last = True
            call.behind = items[: LARGEST - 1 : -1]
        if not self._scheduled:
            self._board()
            self._schedule()  # whoever comes before the loop turns travels together
        self._watch()
        return call

    # --- boarding ---

    def _queue_up(self, call: Call) -> None:
        """Let the next of a call stand in line, at the end: as many as make a batch."""
        if call.done():
            return
        self._waiting.extend(reversed(call.behind[-LARGEST:]))
        del call.behind[-LARGEST:]
        self._waiting[-1].last = bool(call.behind)

    def _take(self) -> Item | None:
        """The first in line, or None when its caller has gone."""
        item = self._waiting.popleft()
        if item.last:
            self._queue_up(item.call)
        return None if item.call.done() else item

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._board()

    def _board(self) -> None:
        """Send what may leave now, in one write."""
        if self._waiter is not None:
            return
        flights: list[Flight] = []
        parcels: list[Parcel] = []
        while (self._again or self._waiting) and (flight := self._next()) is not None:
            flights.append(flight)
            self._launch(flight, parcels)
        if not flights:
            return
        try:
            self._link.send(parcels)
        except (Disconnected, Closed) as error:
            self._turn_back(flights, error)
            return
        for flight in flights:
            for item in flight.items:
                item.call.sent = True
        self._pace.sent(self._count, self._batch is not None)

    def _next(self) -> Flight | None:
        """What leaves next, or None when it has to wait."""
        if self._batch is not None or self._count >= WINDOW or self._bytes >= _BYTES:
            return None
        while self._again:
            flight = self._again.popleft()
            if flight.wanted:
                return flight
        if self._pace.batch(len(self._waiting)):
            return self._gather()
        if self._count and self._count + len(self._waiting) > self._pace.few:
            return None  # they will be a batch when those that are under way have arrived
        while self._waiting:
            if (item := self._take()) is not None:
                return Flight(self, (item,))
        return None

    def _gather(self) -> Flight | None:
        """As many as a batch may have, from the front; what goes to another stream goes by itself."""
        items: list[Item] = []
        room = _BYTES - self._bytes
        while self._waiting and len(items) < LARGEST:
            if items and (self._waiting[0].late or self._waiting[0].size > room):
                break
            item = self._take()
            if item is None:
                continue
            items.append(item)
            room -= item.size
            if item.late:
                break
        return Flight(self, tuple(items)) if items else None

    def _launch(self, flight: Flight, parcels: list[Parcel]) -> None:
        """Make its frames, and expect its answer."""
        items = flight.items
        flight.reply = self._link.expect(self._address(items[-1]), flight.arrived)
        if len(items) == 1:
            parcels.append(self._parcel(items[0], flight.reply, ""))
        else:
            self._batch = flight
            # A new one for each try: the server may know the old one.
            batch = f"Nats-Batch-Id: {self._name}{next(self._numbers)}\r\nNats-Batch-Sequence: "
            for number, item in enumerate(items[:-1], 1):
                parcels.append(self._parcel(item, "", f"{batch}{number}\r\n"))
            end = f"{batch}{len(items)}\r\nNats-Batch-Commit: 1\r\n"
            parcels.append(self._parcel(items[-1], flight.reply, end))
        now = asyncio.get_running_loop().time()
        flight.due = now + max((max(item.call.until for item in (items[0], items[-1])) - now) / 2, 0.1)
        flight.tries += 1
        self._flying[flight] = None
        self._count += len(items)
        self._bytes += flight.size

    def _address(self, item: Item) -> str:
        message = item.message
        return self._layout.schedule(message.subject, message.id) if item.late else message.subject

    def _parcel(self, item: Item, reply: str, more: str) -> Parcel:
        message = item.message
        # The same id on two subjects of a stream would count as one message: identity is both.
        lines = f"Nats-Msg-Id: {message.id} {message.subject}\r\n{item.lines}{more}"
        if item.late:
            due, target = rfc3339(message.not_before or 0.0), self._layout.due(message.subject)
            lines = f"{lines}Nats-Schedule: @at {due}\r\nNats-Schedule-Target: {target}\r\n"
        return self._address(item), reply, lines, message.body

    # --- landing ---

    def _landed(self, flight: Flight) -> bool:
        """Take it out of the air; False when it was given up before."""
        if flight not in self._flying:
            return False
        del self._flying[flight]
        self._link.forget(flight.reply)
        self._count -= len(flight.items)
        self._bytes -= flight.size
        if self._batch is flight:
            self._batch = None
        self._pace.answered(len(flight.items))
        if self._waiting or self._again:
            self._schedule()
        return True

    def answered(self, flight: Flight, answer: Frame | Exception) -> None:
        """The server's answer, or what happened instead."""
        if not self._landed(flight):
            return
        if isinstance(answer, Disconnected):
            self._repeat(flight, str(answer))
            return
        try:
            if isinstance(answer, Exception):
                raise answer
            ack = read_ack(answer)
        except TidingsError as error:
            if len(flight.items) > 1 and not isinstance(error, Closed):
                self._take_apart(flight)
            else:
                for item in flight.items:
                    self._fail(item.call, error)
            return
        if ack is None and len(flight.items) > 1 and flight.tries > len(_PAUSES):
            self._take_apart(flight)  # what only holds up one of them shall not hold up the others
        elif ack is None:
            pause = _PAUSES[min(flight.tries, len(_PAUSES)) - 1]
            for item in flight.items:
                item.call.why = "the stream has no leader, or nobody stores these subjects"
            asyncio.get_running_loop().call_later(pause, self._repeat, flight, "")
        elif len(flight.items) == 1:
            item = flight.items[0]
            self._tell(item, self._stored(ack))
        elif ack.count == len(flight.items):
            for place, item in enumerate(flight.items, ack.seq - ack.count + 1):
                self._tell(item, Stored(place))
        else:
            self._take_apart(flight)

    def _tell(self, item: Item, place: Stored) -> None:
        call = item.call
        call.stored(item.index, place)
        if not call.left:
            self._calls.pop(call, None)

    def _fail(self, call: Call, error: BaseException) -> None:
        call.fail(error)
        self._calls.pop(call, None)

    def _stored(self, ack: Ack) -> Stored:
        # The sequence of a schedule is one of Control, and no place in the log.
        return Stored(0 if ack.stream == self._layout.control else ack.seq, ack.duplicate)

    def _repeat(self, flight: Flight, why: str) -> None:
        """Once more, as it was, before all that has not left yet."""
        if why:
            for item in flight.items:
                item.call.why = why
        self._again.append(flight)
        self._schedule()

    def _take_apart(self, flight: Flight) -> None:
        """A refused batch: nothing of it is stored, or all of it was before. One by one each gets its own answer."""
        self._again.extendleft(Flight(self, (item,)) for item in reversed(flight.items))
        self._schedule()

    # --- trouble ---

    def _turn_back(self, flights: list[Flight], error: Disconnected | Closed) -> None:
        """They could not leave: wait for the connection."""
        for flight in flights:
            self._landed(flight)
        if isinstance(error, Closed):
            self._end(error)
            return
        for flight in flights:
            for item in flight.items:
                item.call.why = str(error)
        self._again.extendleft(reversed(flights))
        if self._waiter is None:
            self._waiter = asyncio.create_task(self._reconnect(), name="tidings publishing again")

    async def _reconnect(self) -> None:
        """Hold everything until the connection stands, as long as anybody waits for it."""
        try:
            while self._calls:
                await asyncio.sleep(0.02)
                try:
                    await self._link.ready(0.5)
                    break
                except (Closed, StoreFull) as error:
                    self._end(error)
                    return
                except EngineUnavailable as error:
                    for call in self._calls:
                        call.why = str(error)
        finally:
            self._waiter = None
        self._pace.reset()
        self._board()

    def _end(self, error: EngineError) -> None:
        """Nobody can be helped: who has sent something is told that it may be stored."""
        self._waiting.clear()
        self._again.clear()
        for call in self._calls:
            if isinstance(error, StoreFull) and call.sent:
                call.why = str(error)
                call.give_up(self._patience)
            else:
                call.fail(type(error)(str(error)))
        self._calls.clear()

    def _watch(self) -> None:
        if self._timer is None:
            pause = min(0.25, self._patience / 20)
            self._timer = asyncio.get_running_loop().call_later(pause, self._look)

    def _look(self) -> None:
        """Give up answers that count as lost, and calls whose time is over."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        for flight in [flight for flight in self._flying if flight.due <= now]:
            if self._landed(flight):
                self._repeat(flight, "no answer in time")
        for call in list(self._calls):
            if call.until <= now:
                call.give_up(self._patience)
            if call.done():  # given up, or cancelled
                del self._calls[call]
        if self._calls:
            self._watch()
