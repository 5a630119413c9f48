"""Put messages into the log: checked here, sent together with those of other callers (`sending`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ...clock import Clock
from ...engine import Outgoing, Stored
from ...errors import InvalidMessage
from ...subjects import within
from .api import JetStream
from .layout import Layout
from .pace import Pace
from .sending import Sender
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
        self._clock = clock
        self._sender = Sender(js.link, layout, Pace(fsyncs), js.timeout)
        self.roots = layout.roots
        """What the namespace stores."""

    async def publish(self, messages: Sequence[Outgoing], limit: int) -> list[Stored]:
        """See `Engine.publish`."""
        if not messages:
            return []
        sizes = [check(message, limit) for message in messages]
        for message in messages:
            if not within(self.roots, message.subject):
                raise InvalidMessage(
                    f"{message.subject!r} is in none of the namespace's roots ({', '.join(self.roots)}): "
                    "nobody would store it"
                )
        await self._admit(sum(sizes))
        now = self._clock.time()
        late = [message.not_before is not None and message.not_before > now for message in messages]
        return await self._sender.send(messages, sizes, late)
