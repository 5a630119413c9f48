"""Whether a reader of an ordered group has everything that was handed out and not settled.

While the consumers' own counts rise by one with each delivery that comes here, nothing has gone elsewhere. After any
break in that (a first pull, a lost connection, a lease that ended, another reader) the server is asked how many
deliveries are open: only when all of them are here, and all of the inbox, does anything leave for a handler, the oldest
first. What was put back into the inbox may be older than what the log has handed out, or newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ...engine import Delivery
from .api import JetStream
from .layout import Layout
from .wire import Source


class Unbroken:
    """Whether deliveries of one ordered group may be handed out."""

    def __init__(self, js: JetStream, layout: Layout, group: str) -> None:
        self.whole = False
        self._js = js
        self._layout = layout
        self._group = group
        self._last: dict[str, int] = {}
        self._breaks = 0

    def came(self, source: Source) -> None:
        """A delivery has arrived here."""
        if source.number != self._last.get(source.stream, -1) + 1:
            self.broken()
        self._last[source.stream] = source.number

    def broken(self) -> None:
        """Something may be elsewhere."""
        self.whole = False
        self._breaks += 1

    async def look(self, here: Callable[[], Sequence[Delivery]]) -> None:
        """Ask the server. `here` says what this connection has."""
        breaks, before = self._breaks, here()
        events, inbox = await asyncio.gather(
            self._js.consumer(self._layout.events, self._group), self._js.consumer(self._layout.control, self._group)
        )
        if events is None or inbox is None or breaks != self._breaks or before != here():
            return
        held = [delivery.token.inbox > 0 for delivery in before]
        counts = events["num_ack_pending"], inbox["num_ack_pending"], inbox["num_pending"]
        self.whole = counts == (held.count(False), held.count(True), 0)
