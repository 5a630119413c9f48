"""`bus.outbox(session)`: an event that leaves with a transaction of the application, or not at all.

A web route that writes an order and announces it has two systems to tell. Here it tells only its database: the event
is a row of the same transaction, and the relay (`outbox.py`) sends it once the row is committed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import failpoints
from .engine import Outgoing
from .publisher import Receipt
from .settings import seconds

if TYPE_CHECKING:
    from .running import Running


class SessionOutbox:
    """`bus.outbox(session)`: publishing as part of a transaction that the application owns."""

    def __init__(
        self, connect: Callable[[], Awaitable[Running]], connect_sync: Callable[[float], Running], session: Any
    ) -> None:
        self._connect = connect
        self._connect_sync = connect_sync
        self._session = session

    async def publish(
        self,
        what: Any,
        body: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        delay: str | float | None = None,
        at: datetime | None = None,
        expires: str | float | None = None,
    ) -> Receipt:
        """Write the event into the transaction; it leaves after the commit, or not at all.

        Events with the same key leave in the order of the commits. Raises what composing it raises, and what the
        database raises. The receipt has no position yet.
        """
        running = await self._connect()
        message = running.publisher.compose(what, body, key=key, id=id, delay=delay, at=at, expires=expires)
        outbox = running.relay_of(self._session).units.outbox(self._session)
        await outbox.stage([message], self._look_soon(running, message))
        return Receipt(message.id, message.subject, waiting=running.publisher.waiting)

    def publish_sync(self, what: Any, body: Any = None, *, timeout: str | float = 30.0, **options: Any) -> Receipt:
        """`publish` for a sync session, in the thread that uses it; takes the same options and raises the same errors.

        The first use in a process connects the bus and waits for that up to `timeout` seconds. The event is sent by
        the event loop that the bus runs in.
        """
        running = self._connect_sync(seconds(timeout))
        message = running.publisher.compose(what, body, **options)
        outbox = running.relay_of(self._session).units.outbox(self._session)
        outbox.stage_sync([message], self._look_soon(running, message))
        return Receipt(message.id, message.subject, waiting=running.publisher.waiting)

    def _look_soon(self, running: Running, message: Outgoing) -> Callable[[], None]:
        relay = running.relay_of(self._session)

        def after_commit() -> None:
            # Called by the database's driver, maybe in a thread of its own, maybe while the loop is being closed.
            failpoints.here("outbox.committed")
            with contextlib.suppress(RuntimeError):
                running.loop.call_soon_threadsafe(relay.look_soon, [message])

        return after_commit
