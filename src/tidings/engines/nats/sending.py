"""Messages on their way into the log: those of all callers travel together, and each is repeated until answered."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from typing import Final

from ...engine import Stored
from ...errors import Closed, EngineError, EngineUnavailable, StoreFull, TidingsError
from .api import Ack, JetStream, read_ack
from .calls import Call, Flight, Item
from .connection import Frame
from .layout import Layout
from .link import Disconnected
from .outbound import Parcel
from .pace import Pace
from .wire import rfc3339

WINDOW: Final = 1024
"""Messages that are under way at the same time."""
LARGEST: Final = 1000
"""Messages of one batch: the server takes no more."""
_BYTES: Final = 4 * 1024 * 1024
"""Bytes under way at the same time; one message may always be."""
_SEVERAL: Final = 8
"""Messages of one call up to which going one after the other is quicker than a batch, where there are no copies."""
_LOST: Final = 2.0
"""Seconds after which a cluster's first answer counts as lost, with the leader that would have given it; each later one
has as many more, so that servers which are only slow are not told everything twice."""
_PAUSES: Final = (0.02, 0.04, 0.08, 0.16, 0.32, 0.5)


class Sender:
    """Takes the messages of all callers, sends those that wait in one write, and hands out the answers.

    The first message goes at once; what comes while it is on its way is next, together. At most `WINDOW` messages and
    `_BYTES` bytes are under way; the rest waits with its callers. Where single messages are dear (see `Pace`) more than
    a few that wait become one atomic batch, and nothing else is sent until it is answered.

    The messages of one call are stored in their order. Where other servers are between here and the stream any single
    message may meet one without a leader, or get lost, and so be stored after what left behind it. There several of one
    call leave as an atomic batch, or one after the other, each when the one before is answered. The server refuses a
    batch as a whole, with one known id in it or when too many are open; then its messages go one by one.
    """

    def __init__(self, js: JetStream, layout: Layout, pace: Pace) -> None:
        self._js = js
        self._link = js.link
        self._layout = layout
        self._pace = pace
        self._patience = js.timeout
        self._calls: dict[Call, None] = {}
        self._line: deque[Call] = deque()
        self._waiting = 0
        """Messages of those who stand in line."""
        self._aside: list[Call] = []
        """Who has to wait for the batch, and lets others pass."""
        self._again: deque[Flight] = deque()
        self._flying: dict[Flight, None] = {}
        self._batch: Flight | None = None
        """The one that is not answered yet, also while it waits to be repeated."""
        self._chosen = False
        """Whether it is one because that is quicker."""
        self._alone = False
        """Whether the server that one is connected to stores what is sent in its order; see `CoreConnection`."""
        self._count = 0
        self._bytes = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Task[None] | None = None
        self._name = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def send(self, items: list[Item]) -> Call:
        """Store them; the list becomes the answer. Cancelled, what is under way may still be stored, and what is not
        is dropped. Either all of them are to wait for their time, or none."""
        call = Call(items, asyncio.get_running_loop().time() + self._patience)
        self._calls[call] = None
        for index, item in enumerate(items):
            item.call, item.index = call, index
        call.queued = True
        self._waiting += len(items)
        self._line.append(call)
        if not self._scheduled:
            self._board()
            self._schedule()  # whoever comes before the loop turns travels together
        self._watch()
        return call

    # --- the line ---

    def _come_back(self, call: Call) -> None:
        """More of it is to leave, before all others."""
        call.queued = True
        self._waiting += len(call.answers) - call.begun
        self._line.appendleft(call)

    def _leave(self) -> None:
        """The first in line goes, with all that it has left."""
        call = self._line.popleft()
        call.queued = False
        self._waiting -= len(call.answers) - call.begun

    # --- boarding ---

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
        self._alone = self._link.alone
        flights: list[Flight] = []
        parcels: list[Parcel] = []
        while (self._again or self._line) and (flight := self._next()) is not None:
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
        if self._batch is None or self._chosen:
            self._pace.sent(self._count, self._batch is not None)

    def _next(self) -> Flight | None:
        """What leaves next, or None when it has to wait."""
        if self._count >= WINDOW or self._bytes >= _BYTES:
            return None
        while self._again:
            flight = self._again.popleft()
            if flight.wanted:
                return flight
            self._batch_over(flight)
        while self._line:
            call = self._line[0]
            if call.done():
                self._leave()
            elif call.late or call.begun < call.apart:
                return self._single(call)
            elif self._batch is not None and self._pace.dear:
                return None
            elif self._batch is None and self._pace.batch(self._waiting):
                self._chosen = True
                return self._gather()
            elif (self._alone and self._batch is None) or self._goes_singly(call):
                if self._count and self._count + self._waiting > self._pace.few:
                    return None  # they will be a batch when those that are under way have arrived
                return self._single(call)
            elif self._batch is None:
                self._chosen = False
                return self._gather()
            else:
                self._aside.append(self._line.popleft())
        return None

    def _goes_singly(self, call: Call) -> bool:
        """Whether the next of it may leave by itself while a batch, or other servers, may fail what left before."""
        few = LARGEST if self._alone else 1 if self._js.replicated else _SEVERAL
        return not call.flying and len(call.answers) - call.begun <= few

    def _single(self, call: Call) -> Flight:
        """The next of the first in line, which comes back when it is answered if the order is to be kept."""
        item = call.answers[call.begun]
        assert isinstance(item, Item)
        call.begun += 1
        self._waiting -= 1
        if call.begun == len(call.answers):
            self._line.popleft()
            call.queued = False
        elif not (call.late or self._alone):
            self._leave()
        elif not call.begun % LARGEST:
            self._line.rotate(-1)  # a large call takes its turn like others
        return Flight([item], item.size, self.answered)

    def _gather(self) -> Flight:
        """As many as a batch may have, from the front; only of those who have several if it was not chosen."""
        items: list[Item] = []
        size, room = 0, _BYTES - self._bytes
        while self._line and len(items) < LARGEST:
            call = self._line[0]
            if call.done():
                self._leave()
                continue
            begun, several = call.begun, len(call.answers) > 1
            if call.late or begun < call.apart or not (self._chosen or several):
                break
            for item in call.answers[begun : begun + LARGEST - len(items)] if several else call.answers:
                assert isinstance(item, Item)
                if size + item.size > room and items:
                    break
                items.append(item)
                size += item.size
                call.begun += 1
            if call.begun == len(call.answers):
                self._line.popleft()
                call.queued = False
                continue
            if call.begun > begun:
                self._line.rotate(-1)
            break
        self._waiting -= len(items)
        self._batch = Flight(items, size, self.answered)
        return self._batch

    def _launch(self, flight: Flight, parcels: list[Parcel]) -> None:
        """Make its frames, and expect its answer."""
        items = flight.items
        flight.reply = self._link.expect(self._address(items[-1]), flight.arrived)
        if len(items) == 1:
            parcels.append(self._parcel(items[0], flight.reply, ""))
        else:
            # A new one for each try: the server may know the old one.
            batch = f"Nats-Batch-Id: {self._name}{next(self._numbers)}\r\nNats-Batch-Sequence: "
            for number, item in enumerate(items[:-1], 1):
                parcels.append(self._parcel(item, "", f"{batch}{number}\r\n"))
            end = f"{batch}{len(items)}\r\nNats-Batch-Commit: 1\r\n"
            parcels.append(self._parcel(items[-1], flight.reply, end))
        now = asyncio.get_running_loop().time()
        left = max(item.call.until for item in (items[0], items[-1])) - now
        flight.tries += 1
        # A server that is alone loses no answer without the connection.
        patience = left / 2 if self._alone else min(left / 2, _LOST * flight.tries)
        flight.due = now + max(patience, 0.1)
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
        if flight is not self._batch or self._chosen:
            self._pace.answered(len(flight.items))
        if self._line or self._again or self._aside:
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
            self._refused(flight, error)
            return
        if ack is None:
            self._later(flight)
        elif len(flight.items) == 1:
            item = flight.items[0]
            if flight is self._batch:
                self._batch_over(flight)
            self._tell(item, self._stored(ack))
            if item.call.left:
                self._go_on(item.call)
        elif ack.count == len(flight.items):
            self._batch_over(flight)
            for place, item in enumerate(flight.items, ack.seq - ack.count + 1):
                self._tell(item, Stored(place))
        else:
            self._take_apart(flight)

    def _tell(self, item: Item, place: Stored) -> None:
        call = item.call
        call.stored(item.index, place)
        if not call.left:
            self._calls.pop(call, None)

    def _go_on(self, call: Call) -> None:
        """One of it is stored: the next one may leave."""
        if call.begun < len(call.answers) and not call.queued and not call.done():
            self._come_back(call)
            self._schedule()

    def _batch_over(self, flight: Flight) -> None:
        """It is stored, refused or wanted no more: who waited for it is first in line."""
        if flight is self._batch:
            self._batch = None
            self._line.extendleft(reversed(self._aside))
            self._aside.clear()

    def _stored(self, ack: Ack) -> Stored:
        # The sequence of a schedule is one of Control, and no place in the log.
        return Stored(0 if ack.stream == self._layout.control else ack.seq, ack.duplicate)

    def _refused(self, flight: Flight, error: TidingsError) -> None:
        if isinstance(error, Closed):
            self._end(error)
        elif len(flight.items) > 1:
            self._take_apart(flight)
        else:
            self._batch_over(flight)
            for item in flight.items:
                item.call.fail(error)
                self._calls.pop(item.call, None)

    def _later(self, flight: Flight) -> None:
        """The stream takes nothing at the moment."""
        if flight is self._batch and flight.tries > len(_PAUSES):
            self._take_apart(flight)  # what only holds up one of them shall not hold up the others
            return
        for item in flight.items:
            item.call.why = "the stream has no leader, or nobody stores these subjects"
        pause = _PAUSES[min(flight.tries, len(_PAUSES)) - 1]
        asyncio.get_running_loop().call_later(pause, self._repeat, flight, "")

    def _repeat(self, flight: Flight, why: str) -> None:
        """Once more, as it was, before all that has not left yet."""
        if why:
            for item in flight.items:
                item.call.why = why
        self._again.append(flight)
        self._schedule()

    def _take_apart(self, flight: Flight) -> None:
        """A refused batch: nothing of it is stored, or all of it was before. One by one each gets its own answer."""
        self._batch_over(flight)
        for item in reversed(flight.items):
            call = item.call
            call.apart = max(call.apart, item.index + 1)
            call.begun = item.index
            if call.queued:
                self._waiting += 1
            elif not call.done():
                self._come_back(call)
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
        self._line.clear()
        self._aside.clear()
        self._again.clear()
        self._batch = None
        self._waiting = 0
        for call in self._calls:
            call.end(type(error)(str(error)), f"({error})")
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
