"""Subscriptions that outlive the connection they are made on."""

from __future__ import annotations

import logging

from .connection import CoreConnection, OnFrame, Subscribed

log = logging.getLogger("tidings.engines.nats")


class Subscription:
    """One subject that frames are taken from over reconnects, until `close`."""

    def __init__(self, subject: str, queue: str, on_frame: OnFrame, others: set[Subscription]) -> None:
        self.subject = subject
        self.queue = queue
        self.on_frame = on_frame
        self.current: Subscribed | None = None
        self._others = others

    async def close(self) -> None:
        if (current := self._end()) is not None:
            await current.close()

    async def drain(self) -> None:
        """Like `close`, and returns when all that was on its way has been handed to `on_frame`."""
        if (current := self._end()) is not None:
            await current.drain()

    def _end(self) -> Subscribed | None:
        self._others.discard(self)
        current, self.current = self.current, None
        return current


class Subscriptions:
    """All of one link. They are made on the newest connection even before it is known whether that can be used: who
    subscribes in this moment would else be left out of it."""

    def __init__(self) -> None:
        self._open: set[Subscription] = set()
        self._newest: CoreConnection | None = None

    async def add(self, subject: str, on_frame: OnFrame, queue: str = "") -> Subscription:
        """Take part from now on; where the connection is lost, from the next one on."""
        subscription = Subscription(subject, queue, on_frame, self._open)
        self._open.add(subscription)
        if (connection := self._newest) is None:
            return subscription
        try:
            await self._make(connection, subscription)
        except BaseException as error:
            if connection.alive or not isinstance(error, Exception):
                self._open.discard(subscription)
                raise
            log.debug("%s is subscribed to with the next connection: %s", subject, error)
        return subscription

    async def restore(self, connection: CoreConnection) -> None:
        """Make all of them on the newest connection. Raises what a connection raises that is lost."""
        self._newest = connection
        for subscription in list(self._open):
            await self._make(connection, subscription)

    def lost(self) -> None:
        """There is no connection."""
        self._newest = None
        for subscription in self._open:
            subscription.current = None

    async def _make(self, connection: CoreConnection, subscription: Subscription) -> None:
        made = await connection.subscribe(subscription.subject, subscription.queue, subscription.on_frame)
        if connection is self._newest and subscription in self._open:
            subscription.current = made
        else:  # it was closed meanwhile, or stands on a newer one
            await made.close()
