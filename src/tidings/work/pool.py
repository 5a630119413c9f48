"""One message at a time, by a few tasks that take message after message: for handlers without a transaction.

A task begins with the first message that waits. As long as the handler comes to its end without waiting for anything,
that task alone goes on; once it waits, others take what is left, up to the group's concurrency. So a quick handler
costs no task, no timer and no turn of the event loop per message, and a slow one runs beside others as ever.

Of messages that are handled quickly more are taken than can begin at once: as many as have lately been handled in
`_AHEAD` seconds. Should the handlers get stuck they go back to the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextvars import copy_context
from typing import Final

from ..engine import Delivery, Outcome, Release
from ..outbox import Relay
from ..stepping import in_context
from .each import Each
from .handling import Handling
from .hands import Receiver
from .outage import Away, Outage
from .suspects import Floor

log = logging.getLogger("tidings.worker")

_TURN: Final = 0.004
"""Seconds after which a task lets leases, other groups and the engine have their turn."""
_AHEAD: Final = 0.008
_MOST: Final = 512
_STUCK: Final = 1.0
"""Seconds without any progress after which what waits goes back."""


class Pool(Each):
    """Runs one group's handler on what was pulled, in as few tasks as the handler needs."""

    def __init__(self, handling: Handling, hands: Receiver, relay: Relay | None, floor: Floor, outage: Outage) -> None:
        super().__init__(handling, hands, relay, floor, outage)
        self._waiting: deque[Delivery] = deque()
        self._busy: set[asyncio.Task[None]] = set()
        """Those of the tasks whose handler waits for something."""
        self._pace = _Pace()
        self._watch: asyncio.TimerHandle | None = None

    def room(self, most: int | None = None) -> int:
        free = (self.concurrency if most is None else most) - len(self.running) - len(self._waiting)
        wanted = self._pace.in_hand()
        if most is not None or wanted <= self.concurrency:
            self.ahead = 0
            return free
        # Not one by one, as they are handled: by halves.
        room = wanted - len(self._waiting) if len(self._waiting) <= wanted // 2 else 0
        self.ahead = room - max(free, 0)
        return room

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._hands.take(delivery)
        self._waiting.extend(deliveries)
        if len(self._busy) == len(self.running):
            self._spread(1)

    def drained(self) -> None:
        self._pace.forget()

    def stop(self) -> None:
        super().stop()
        self._hand_back()
        if self._watch is not None:
            self._watch.cancel()

    def _spread(self, most: int = _MOST) -> None:
        """Begin more tasks, if there is something for them."""
        new = min(most, len(self._waiting), self.concurrency - len(self.running))
        for _ in range(new):
            task = asyncio.create_task(self._work(), name=f"tidings-handle-{self.group}")
            self.running[task] = ()
            task.add_done_callback(self._ended)
        if len(self._waiting) > new and self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(_STUCK, self._look, self._waiting[0])

    def _look(self, first: Delivery) -> None:
        """Whether what waited first is still there."""
        self._watch = None
        if not self._waiting:
            return
        if self._waiting[0] is first:
            log.info("group %s: all its handlers are busy, %d messages go to others", self.group, len(self._waiting))
            self._hand_back()
        else:
            self._spread()

    def _hand_back(self) -> None:
        while self._waiting:
            self._hands.put(Release(self._waiting.popleft()))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        super()._ended(task)
        if self._waiting:
            self._spread()

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop, own = asyncio.get_running_loop(), copy_context()

        def waits() -> None:
            self._busy.add(task)
            self._spread()

        over = loop.time() + _TURN
        # After a cancel that somebody has left behind, the next message gets a fresh task.
        while self._waiting and not task.cancelling():
            delivery = self._waiting.popleft()
            self.running[task] = (delivery,)
            await in_context(own.copy(), self._handle(delivery, self._outage.begun()), waits)
            self._busy.discard(task)
            self._pace.handled += 1
            if loop.time() > over:
                self.running[task] = ()
                self._one_ended.set()
                await asyncio.sleep(0)
                over = loop.time() + _TURN

    def _after(self, trouble: Away, delivery: Delivery, mark: int) -> Outcome:
        outcome = super()._after(trouble, delivery, mark)
        if self._outage.probing:
            self._hand_back()
        return outcome


class _Pace:
    """How many messages are handled in a moment."""

    def __init__(self) -> None:
        self.handled = 0
        self._since = 0.0
        self._in_hand = 0

    def in_hand(self) -> int:
        """So many are handled in `_AHEAD` seconds, as far as is known; a few, or none, for slow handlers."""
        now = asyncio.get_running_loop().time()
        passed = now - self._since
        if passed >= _AHEAD:
            self._in_hand = min(_MOST, int(self.handled * _AHEAD / passed))
            self._since, self.handled = now, 0
        return self._in_hand

    def forget(self) -> None:
        self._since, self.handled, self._in_hand = asyncio.get_running_loop().time(), 0, 0
