"""`bus.outbox(session)`: an event that leaves with a transaction of the application, or not at all.

A web route that writes an order and announces it has two systems to tell. Here it tells only its database: the event
is a row of the same transaction, and the relay (`outbox.py`) sends it once the row is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .publisher import Receipt

if TYPE_CHECKING:
    from .running import Running


class SessionOutbox:
    """`bus.outbox(session)`: publishing as part of a transaction that the application owns."""

    def __init__(self, connect: Callable[[], Awaitable[Running]], session: Any) -> None:
        self._connect = connect
        self._session = session

    async def publish(
        self,
        what: Any,
        body: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | None = None,
    ) -> Receipt:
        """Write the event into the transaction; it leaves after the commit, or not at all.

        Raises what composing it raises, and what the database raises. The receipt has no position yet.
        """
        running = await self._connect()
        relay = running.relay_of(self._session)
        message = running.publisher.compose(what, body, key=key, id=id, delay=delay, at=at, expires=expires)
        loop = asyncio.get_running_loop()

        def after_commit() -> None:
            # Called by the database's driver, maybe in a thread of its own, maybe while the loop is being closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(relay.look_soon, [message])

        await relay.units.outbox(self._session).stage([message], after_commit)
        return Receipt(message.id, message.subject)
