"""Put messages into the log: checked here, sent together with those of other callers (`sending`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ...clock import Clock
from ...engine import Outgoing, Stored
from ...errors import InvalidMessage
from ...subjects import within
from .api import JetStream
from .layout import Layout
from .link import Denied
from .pace import Pace
from .sending import Item, Sender
from .wire import check


class Publisher:
    """`fsyncs` says whether the server writes each message to the disk before it answers; None is not known."""

    def __init__(
        self,
        js: JetStream,
        layout: Layout,
        clock: Clock,
        admit: Callable[[int], Awaitable[None]],
        fsyncs: bool | None = None,
    ) -> None:
        self._admit = admit
        self._js = js
        self._layout = layout
        self._clock = clock
        self._sender = Sender(js.link, layout, Pace(fsyncs), js.timeout)
        self.roots = layout.roots
        """What the namespace stores."""

    async def publish(self, messages: Sequence[Outgoing], limit: int) -> list[Stored]:
        """See `Engine.publish`."""
        if not messages:
            return []
        now = self._clock.time()
        items = [Item(message, check(message, limit), now) for message in messages]
        for message in messages:
            if not within(self.roots, message.subject):
                raise InvalidMessage(
                    f"{message.subject!r} is in none of the namespace's roots ({', '.join(self.roots)}): "
                    "nobody would store it"
                )
        await self._admit(sum([item.size for item in items]))
        new = [
            place
            for place, item in enumerate(items)
            if item.message.not_before is None or item.late or not await self._came_due(item.message)
        ]
        if len(new) == len(items):
            return await self._sender.send(items)
        results = [Stored(0, duplicate=True)] * len(items)
        if new:
            answers = await self._sender.send([items[place] for place in new])
            for place, stored in zip(new, answers, strict=True):
                results[place] = stored
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
