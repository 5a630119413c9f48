"""Whether a reader of an ordered group has everything that was handed out and not settled.

While the consumers' own counts rise by one with each delivery that comes here, nothing has gone elsewhere. After any
break in that (a first pull, a lost connection, a lease that ended, another reader) the server is asked how many
deliveries are open: only when all of them are here does anything leave for a handler, the oldest first. Then the inbox
is emptied before anything newer, because what was put back into it may be older than all that the log has still to
bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from ...engine import Delivery
from .api import JetStream
from .layout import Layout
from .wire import Source

Trust = Literal["nothing", "inbox", "all"]


class Unbroken:
    """What may be handed out of the deliveries of one ordered group."""

    def __init__(self, js: JetStream, layout: Layout, group: str) -> None:
        self.trust: Trust = "nothing"
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
        self.trust = "nothing"
        self._breaks += 1

    async def look(self, here: Callable[[], Sequence[Delivery]]) -> Trust:
        """Ask the server, unless all is known to be here. `here` says what this connection has."""
        if self.trust == "all":
            return "all"
        breaks, before = self._breaks, here()
        events, inbox = await asyncio.gather(
            self._js.consumer(self._layout.events, self._group), self._js.consumer(self._layout.control, self._group)
        )
        if events is None or inbox is None or breaks != self._breaks or before != here():
            return "nothing"
        held = [delivery.token.inbox > 0 for delivery in before]
        if (events["num_ack_pending"], inbox["num_ack_pending"]) != (held.count(False), held.count(True)):
            return "nothing"
        self.trust = "inbox" if inbox["num_pending"] else "all"
        return self.trust
