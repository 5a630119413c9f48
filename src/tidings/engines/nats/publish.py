"""Put messages into the log: checked here, sent together with those of other callers (`sending`)."""

from __future__ import annotations

from collections.abc import Sequence

from ...clock import Clock
from ...engine import Outgoing, Stored
from ...errors import InvalidMessage
from ...subjects import within
from .api import JetStream
from .calls import Item
from .layout import Layout
from .link import Denied
from .pace import Pace
from .sending import Sender
from .space import Gauge
from .wire import checked


class Publisher:
    """`fsyncs` says whether the server writes each message to the disk before it answers; None is not known."""

    def __init__(
        self,
        js: JetStream,
        layout: Layout,
        clock: Clock,
        gauge: Gauge,
        fsyncs: bool | None = None,
    ) -> None:
        self._gauge = gauge
        self._js = js
        self._layout = layout
        self._clock = clock
        self._sender = Sender(js, layout, Pace(fsyncs))
        self.roots = layout.roots
        """What the namespace stores."""

    async def publish(self, messages: Sequence[Outgoing], limit: int) -> list[Stored]:
        """See `Engine.publish`."""
        if not messages:
            return []
        items = self._items(messages, limit)
        size = items[0].size if len(items) == 1 else sum([item.size for item in items])
        if not self._gauge.has_room(size):
            await self._gauge.make_room(size)
        for message in messages:
            if message.not_before is not None:
                return await self._send_timed(items)
        return await self._sender.send(items)

    def _items(self, messages: Sequence[Outgoing], limit: int) -> list[Item]:
        # Not in the coroutine: what is captured there the garbage collector has to look at, a thousand times when a
        # thousand calls wait.
        return [Item(message, self._checked(message, limit)) for message in messages]

    def _checked(self, message: Outgoing, limit: int) -> str:
        lines = checked(message, limit)
        if not within(self.roots, message.subject):
            raise InvalidMessage(
                f"{message.subject!r} is in none of the namespace's roots ({', '.join(self.roots)}): "
                "nobody would store it"
            )
        return lines

    async def _send_timed(self, items: list[Item]) -> list[Stored]:
        """Some have a time of their own: those go by themselves, and what is known since before it was over is not sent
        again."""
        now = self._clock.time()
        for item in items:
            item.late = item.message.not_before is not None and item.message.not_before > now
        late = [place for place, item in enumerate(items) if item.late]
        new = [
            place
            for place, item in enumerate(items)
            if not item.late and (item.message.not_before is None or not await self._came_due(item.message))
        ]
        results = [Stored(0, duplicate=True)] * len(items)
        calls = [(places, self._sender.send([items[place] for place in places])) for places in (new, late) if places]
        try:
            for places, call in calls:
                for place, stored in zip(places, await call, strict=True):
                    results[place] = stored
        finally:
            for _, call in calls:
                call.cancel()  # of the one nothing more is wanted when the other failed
        return results

    async def _came_due(self, message: Outgoing) -> bool:
        """Whether a message whose time is over was published before it was: then it waits in Control, or has left for
        Events, which does not know its id. Control keeps those for some minutes."""
        control, place = self._layout.control, self._layout.schedule(message.subject, message.id)
        try:
            if await self._js.message(control, place) is not None:
                return True
            async for frames in self._js.pages(control, self._layout.due(message.subject), 1):
                if any(frame.header("Nats-Scheduler") == place for frame in frames):
                    return True
        except Denied:
            pass  # who may not look may not publish for later either
        return False
