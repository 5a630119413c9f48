"""What one connection pulls for one group: asking, holding, keeping leases, handing out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import platform
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from ...clock import Clock
from ...engine import Delivery, Entry, Outcome, Release
from ...errors import Closed, EngineError, EngineUnavailable
from .api import JetStream
from .connection import Frame
from .fetch import Fetch
from .groups import Groups
from .headers import ORIGIN
from .layout import NS, Layout, Shape
from .leases import SAFE, renew
from .link import Disconnected
from .strangers import answerable, places
from .subscriptions import Subscription
from .unbroken import Unbroken
from .wire import UNNOTED, Attempts, Token, clean, first_body, origin_of, original, source

log = logging.getLogger("tidings.engines.nats")

_LOOK_AGAIN: Final = 0.1
"""Seconds after which it is looked again whether what is here may be handed out."""
_WHOLE_INBOX: Final = 500
"""Messages of the inbox that are asked for at a time, while all of them are needed."""
_SOON: Final = b'-NAK {"delay": 500000000}'
_numbers = itertools.count()
Settle: TypeAlias = Callable[[Sequence[Outcome]], Awaitable[None]]


class Holding(msgspec.Struct):
    """The answer of a reader to the question who holds what."""

    reader: str
    count: int
    """Deliveries of the group in its hands."""
    since: float | None = None
    """Since when it holds the one that was asked for, seconds since 1970."""


class Puller:
    """One group's deliveries on this connection. A single subscription takes in what both of its consumers send."""

    def __init__(self, js: JetStream, layout: Layout, clock: Clock, groups: Groups, group: str, settle: Settle) -> None:
        self._settle = settle
        self._js = js
        self._link = js.link
        self._layout = layout
        self._clock = clock
        self._groups = groups
        self._group = group
        inbox = f"{self._link.inbox}.p{next(_numbers)}"
        self._inbox = inbox
        self._fetches = {
            layout.events: Fetch(self._link, layout.events, group, f"{inbox}.e"),
            layout.control: Fetch(self._link, layout.control, group, f"{inbox}.c"),
        }
        self._shape: Shape | None = None
        self._unbroken = Unbroken(js, layout, group)
        self._buffer: deque[Delivery] = deque()
        self._held: dict[tuple[int, int], tuple[Delivery, float]] = {}
        self._doubtful: list[Frame] = []
        self._changed: asyncio.Event | None = None
        """What pulls wait for; None while none waits."""
        self._subscriptions: list[Subscription] = []
        self._keeper: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._stops = 0
        self._tried: set[int] = set()
        self._generation = 0
        self._identity = self._link.identity
        self._pulling = 0
        self._pulled = 0.0
        self._closed = False

    async def pull(self, limit: int, wait: float) -> list[Delivery]:
        """See `Engine.pull`."""
        self._pulling += 1
        try:
            return await self._pull(limit, wait)
        finally:
            self._pulling -= 1
            self._pulled = self._clock.monotonic()

    async def _pull(self, limit: int, wait: float) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        until, asked, stops = loop.time() + wait, False, self._stops
        while self._stops == stops:
            if taken := await self._take(limit):
                await self._ask_ahead(limit, taken)
                return taken
            left = until - loop.time()
            if asked and left <= 0 and not (wait <= 0 and self._asking):
                return []
            changed = self._changed = self._changed or asyncio.Event()
            try:
                await self._link.ready(max(left, 0.0))
                await self._start()
                if self._stops != stops:
                    break
                await self._ask(limit, max(left, 0.0))
            except Disconnected:
                if left <= 0:
                    raise
                await asyncio.sleep(0.01)
                continue
            asked = True
            if left <= 0 and not self._asking:
                continue  # a longer request is open: what was there has come
            # With `wait` 0 the server answers at once; should it not, it is gone.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience(left)):
                    await changed.wait()
            if left <= 0 and not changed.is_set():
                raise EngineUnavailable(f"{self._link.server} does not answer a pull for group {self._group}")
        if self._closed:
            raise Closed("the engine was closed")
        return []

    def _patience(self, left: float) -> float:
        """How long to wait for something to change here before looking again."""
        if left <= 0:
            return min(2.0, self._js.timeout)
        rest = min((fetch.rest for fetch in self._fetches.values() if fetch.rest), default=left)
        return min(left, _LOOK_AGAIN if self._buffer else rest)

    async def stop(self) -> None:
        """See `Engine.stop_pulling`."""
        self._stops += 1
        self._unbroken.broken()
        self.ring()
        async with self._starting:
            subscriptions, self._subscriptions = self._subscriptions, []
            keeper, self._keeper = self._keeper, None
            if keeper is not None:
                keeper.cancel()
            await asyncio.gather(*(subscription.drain() for subscription in subscriptions))
            for fetch in self._fetches.values():
                fetch.forget()
            waiting, doubtful = list(self._buffer), [frame.reply for frame in self._doubtful]
            self._buffer.clear()
            self._doubtful.clear()
            await self._hand_back(waiting, doubtful)

    async def close(self) -> None:
        """Stop, hand back also what was handed out and not settled, and end all waiting pulls with `Closed`."""
        self._closed = True
        with contextlib.suppress(EngineUnavailable):
            await self.stop()
            now = self._clock.monotonic()
            await self._hand_back([held for held, _ in self._held.values() if held.deadline > now])
        self.abandon()

    def abandon(self) -> None:
        """Stop without a word to the server."""
        self._closed = True
        self._stops += 1
        self._held.clear()
        self._buffer.clear()
        if self._keeper is not None:
            self._keeper.cancel()
        self.ring()

    def settled(self, delivery: Delivery) -> None:
        key = _key(delivery)
        held = self._held.get(key)
        if held is not None and held[0] is delivery:
            del self._held[key]

    def reconnected(self) -> None:
        """The connection was lost, or stands again.

        A server that was started anew may have forgotten that it had sent us something, and send it to others: what
        still waits here is left to them. So nothing is handed out either while no server answers.
        """
        self._unbroken.broken()
        if self._link.identity and self._link.identity != self._identity:
            self._buffer.clear()
            self._identity = self._link.identity
        self.ring()

    def ring(self) -> None:
        """Something has changed: let every waiting pull look again."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    def reshaped(self, shape: Shape) -> None:
        """The group was declared anew on this connection."""
        self._shape = shape

    @property
    def _asking(self) -> bool:
        return bool(self._doubtful) or any(fetch.brief and fetch.open for fetch in self._fetches.values())

    async def _start(self) -> None:
        """Subscribe, if this is the first pull or the first after `stop`. Raises `Conflict` for an unknown group."""
        if self._closed:
            raise Closed("the engine was closed")
        missing = any(fetch.missing for fetch in self._fetches.values())
        if self._subscriptions and not missing and self._generation == self._link.generation:
            return
        async with self._starting:
            await self._look_up_tried()
            if self._shape is None or any(fetch.missing for fetch in self._fetches.values()):
                if self._shape is not None:
                    await asyncio.sleep(0.05)  # perhaps a leader is being elected
                self._shape = await self._groups.living(self._group)
                for fetch in self._fetches.values():
                    fetch.missing = False
            if not self._subscriptions:
                self._subscriptions = [
                    await self._link.subscribe(f"{self._inbox}.*.*", self._receive),
                    await self._link.subscribe(self._layout.who(self._group), self._tell_who),
                ]
                self._keeper = asyncio.create_task(self._keep(), name=f"tidings leases of {self._group}")

    async def _look_up_tried(self) -> None:
        """Find out after each connect what was tried: a server that was killed may have forgotten deliveries, and
        says of a message that was handed out and failed that this is the first time."""
        generation = self._link.generation
        if generation != self._generation:
            tried = await self._js.subjects(self._layout.control, self._layout.attempts(self._group, "*"))
            self._tried = {position for _, position in places(tried)}
            self._generation = generation

    async def _ask(self, limit: int, wait: float) -> None:
        """Ask both consumers for as many as are wanted beyond what is here, unless a request is open."""
        for stream, fetch in self._fetches.items():
            wanted = self._wanted(limit, stream == self._layout.control)
            if wanted > 0 and not fetch.open and not fetch.rest:
                await fetch.ask(wanted, wait)

    def _wanted(self, limit: int, inbox: bool) -> int:
        if not self._must_wait:
            return limit - len(self._buffer)
        # What is missing comes only to those who ask; and all of the inbox has to come.
        return _WHOLE_INBOX if inbox else 1

    @property
    def _must_wait(self) -> bool:
        """Whether what is here may not be handed out yet."""
        return self._shape is not None and self._shape.ordered and not self._unbroken.whole

    async def _ask_ahead(self, limit: int, taken: list[Delivery]) -> None:
        """Where much waits, have the next ones sent while these are handled: only what is there already."""
        wanted = 0 if self._must_wait else limit - len(self._buffer)
        try:
            for fetch in self._fetches.values():
                if wanted > 0 and limit > 1 and fetch.flowing:
                    await fetch.ask(wanted, 0.0)
        except EngineUnavailable:
            return  # the next pull will see
        except BaseException:
            self._put_back(taken)
            raise

    def _receive(self, frame: Frame) -> None:
        if not frame.reply.startswith("$JS.ACK."):
            kind = self._layout.events if ".e." in frame.subject else self._layout.control
            self._fetches[kind].status(frame)
        else:
            self._take_in(frame)
        self.ring()

    def _take_in(self, frame: Frame) -> None:
        came = source(frame.reply)
        fetch = self._fetches.get(came.stream)
        if fetch is None or self._shape is None:
            return
        fetch.message()
        if self._shape.ordered:
            self._unbroken.came(came)
        if came.stream == self._layout.control:
            if not frame.header(ORIGIN):
                self._link.spawn(self._link.publish(frame.reply, b"+ACK"))  # a stranger's
                return
            position = int(frame.subject.rpartition(".")[2])
            origin = origin_of(frame)
            entry = original(position, origin, frame.headers, frame.body)
            token = Token(frame.reply, came.position, origin.reference, first_body(origin, frame.body))
            token.replay = origin.replay
            token.dropped = origin.dropped
            self._admit(entry, came.deliveries, token)
        elif self._shape.verdict(frame.subject, came.position):
            entry = Entry(came.position, frame.subject, came.time, clean(frame.headers), frame.body)
            self._admit(entry, came.deliveries, Token(frame.reply, 0))
        else:
            # Somebody may have added a claim since we looked: never acknowledge on old knowledge.
            self._doubtful.append(frame)
            if len(self._doubtful) == 1:
                self._link.spawn(self._resolve())

    def _admit(self, entry: Entry, deliveries: int, token: Token) -> None:
        assert self._shape is not None
        now = self._clock.monotonic()
        deadline = now + self._shape.lease * SAFE
        delivery = Delivery(entry, self._group, deliveries, 0, deadline, token, 0, token.replay, token.dropped)
        held = self._held.get((token.inbox, entry.position))
        if held is not None and held[0].deadline > now:
            # A server that was killed has forgotten that it had handed this out: it is still in our hands.
            held[0].token.reply, held[0].deadline = token.reply, delivery.deadline
        else:
            self._buffer.append(delivery)

    async def _resolve(self) -> None:
        """Decide about entries that the group did not want as far as was known here."""
        try:
            shape = self._shape = await self._groups.living(self._group)
            frames, self._doubtful = self._doubtful, []
            for frame in frames:
                came = source(frame.reply)
                verdict = shape.verdict(frame.subject, came.position)
                if verdict:
                    entry = Entry(came.position, frame.subject, came.time, clean(frame.headers), frame.body)
                    self._admit(entry, came.deliveries, Token(frame.reply, 0))
                else:
                    # Not wanted, or handed over through the inbox; while that is being prepared, it comes again.
                    await self._link.publish(frame.reply, b"+ACK" if verdict is False else _SOON)
        except EngineError:
            self._doubtful.clear()  # they come back with the end of their lease
            raise
        finally:
            self.ring()

    async def _take(self, limit: int) -> list[Delivery]:
        if not self._buffer or not self._link.connected:
            return []
        if wary := self._must_wait:
            await self._put_in_order()
        now, since = self._clock.monotonic(), self._clock.time()
        taken: list[Delivery] = []
        while self._buffer and len(taken) < limit and not (wary and self._must_wait):
            delivery = self._buffer.popleft()
            if delivery.deadline > now:
                taken.append(delivery)
                self._held[delivery.token.inbox, delivery.entry.position] = delivery, since
            else:
                self._unbroken.broken()
                if self._must_wait:
                    break
        try:
            again = [d for d in taken if d.deliveries > 1 or d.entry.position in self._tried]
            if again:
                await self._complete(again)
            await self._fetch_bodies([delivery for delivery in taken if delivery.token.reference])
        except BaseException:
            self._put_back(taken)
            raise
        return taken

    async def _put_in_order(self) -> None:
        """Find out whether anything may be handed out of an ordered group; then the oldest stands in front."""
        now = self._clock.monotonic()
        self._drop_expired(now)
        if self._doubtful:
            return
        await self._unbroken.look(
            lambda: [*(held for held, _ in self._held.values() if held.deadline > now), *self._buffer]
        )
        if self._unbroken.whole:
            self._buffer = deque(sorted(self._buffer, key=lambda delivery: delivery.entry.position))

    def _drop_expired(self, now: float) -> None:
        """Forget what waited here for longer than its lease."""
        kept = deque(delivery for delivery in self._buffer if delivery.deadline > now)
        if len(kept) < len(self._buffer):
            self._buffer = kept
            self._unbroken.broken()

    def _put_back(self, taken: list[Delivery]) -> None:
        for delivery in taken:
            self.settled(delivery)
        self._buffer.extendleft(reversed(taken))

    async def _complete(self, deliveries: list[Delivery]) -> None:
        """Look up what was tried before on those that have been handed out before."""
        control = self._layout.control
        subjects = [self._layout.attempts(self._group, delivery.entry.position) for delivery in deliveries]
        asked = [await self._js.ask_last(control, subject) for subject in subjects]
        for delivery, subject, question in zip(deliveries, subjects, asked, strict=True):
            frame = await self._js.found(question, control, subject)
            if frame is not None and frame.body:
                tried = msgspec.json.decode(frame.body, type=Attempts)
                delivery.attempts, delivery.crashes, delivery.returned = tried.attempts, tried.crashes, tried.returned

    async def _fetch_bodies(self, deliveries: list[Delivery]) -> None:
        """Those that were too large to travel through the inbox stand in the log."""
        for delivery in deliveries:
            delivery.entry = await self._groups.logged(delivery.entry)
            delivery.token.reference = False

    async def _keep(self) -> None:
        """Renew the leases of what waits here for a `pull`, and forget what was held too long.

        When no pull has come for half a lease it goes back: others may be idle while this process is busy or stuck.
        """
        while True:
            assert self._shape is not None
            await asyncio.sleep(min(self._shape.lease / 3, 10.0))
            now = self._clock.monotonic()
            self._held = {key: held for key, held in self._held.items() if held[0].deadline + self._shape.lease > now}
            self._drop_expired(now)
            if not self._pulling and now - self._pulled > self._shape.lease / 2:
                self._link.spawn(self.stop())
                return
            with contextlib.suppress(EngineUnavailable):
                await renew(self._link, self._clock, self._buffer, self._groups.lease)

    async def _hand_back(self, deliveries: list[Delivery], others: Sequence[str] = ()) -> None:
        """At once; what has come back often with a note (`UNNOTED`). Without a server they come back with the end
        of their lease."""
        often = [delivery for delivery in deliveries if delivery.deliveries > UNNOTED]
        replies = [*(each.token.reply for each in deliveries if each.deliveries <= UNNOTED), *others]
        with contextlib.suppress(EngineError):
            if replies:
                self._link.send_each(replies, b"-NAK")
                await self._link.flush()
            if often:
                await self._complete(often)
                await self._settle([Release(delivery) for delivery in often])

    def _tell_who(self, frame: Frame) -> None:
        """Another process asks who holds the position in the body."""
        if not answerable(frame.reply) or not frame.body.isdigit():
            return
        position = int(frame.body)
        now = self._clock.monotonic()
        mine = [held for held in self._held.values() if held[0].deadline > now]
        since = next((since for delivery, since in mine if delivery.entry.position == position), None)
        if since is None and any(delivery.entry.position == position for delivery in self._buffer):
            since = self._clock.time()
        holding = Holding(f"{platform.node()}:{os.getpid()}", len(mine) + len(self._buffer), since)
        self._link.spawn(self._link.publish(frame.reply, msgspec.json.encode(holding)))


def _key(delivery: Delivery) -> tuple[int, int]:
    """One message of one of the two consumers."""
    return delivery.token.inbox, delivery.entry.position


def nak(delay: float) -> bytes:
    """Hand back, to be given out again after `delay` seconds."""
    return b"-NAK" if delay <= 0 else b'-NAK {"delay": %d}' % int(delay * NS)
