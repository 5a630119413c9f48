"""Put messages into the log: pipelined, and repeated with the same ids until the server has answered each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ...clock import Clock
from ...engine import Outgoing, Stored
from ...errors import EngineUnavailable, InvalidMessage, StoreFull, TidingsError, Unconfirmed
from ...subjects import matches
from .api import Ack, JetStream, read_ack
from .connection import Frame
from .layout import Layout
from .link import Disconnected
from .wire import check, rfc3339

WINDOW: Final = 256
"""Messages of one call that are on their way at the same time."""


class Publisher:
    def __init__(self, js: JetStream, layout: Layout, clock: Clock, admit: Callable[[int], Awaitable[None]]) -> None:
        self._admit = admit
        self._js = js
        self._link = js.link
        self._layout = layout
        self._clock = clock
        self.roots = layout.roots
        """What the namespace stores."""

    async def publish(self, messages: Sequence[Outgoing], limit: int) -> list[Stored]:
        """See `Engine.publish`. Each try sends what has no answer yet, in order; a try ends with the first trouble."""
        size = 0
        for message in messages:
            size += check(message, limit)
            if not any(matches(root, message.subject) for root in self.roots):
                raise InvalidMessage(
                    f"{message.subject!r} is in none of the namespace's roots ({', '.join(self.roots)}): "
                    "nobody would store it"
                )
        await self._admit(size)
        # Decided once: a repeat that took the other way would be stored a second time.
        now = self._clock.time()
        late = [message.not_before is not None and message.not_before > now for message in messages]
        results: list[Stored | None] = [None] * len(messages)
        loop = asyncio.get_running_loop()
        until, pause, why, sent = loop.time() + self._js.timeout, 0.02, "no answer in time", False
        while (left := until - loop.time()) > 0:
            try:
                await self._link.ready(left)
            except (EngineUnavailable, StoreFull) as error:  # nobody came in time, or nobody will before there is space
                if not sent:
                    raise
                why = str(error)
                break
            try:
                sent = True
                async with asyncio.timeout(max(left / 2, 0.1)):
                    await self._try(messages, late, results)
                if all(result is not None for result in results):
                    return [result for result in results if result is not None]
                why = "the stream has no leader, or nobody stores these subjects"
            except Disconnected as error:
                why = str(error)
            except TimeoutError:
                why = "no answer in time"
            await asyncio.sleep(min(pause, max(0.0, until - loop.time())))
            pause = min(0.5, pause * 2)
        if not sent:
            raise EngineUnavailable(f"nothing was published: {why}")
        missing = sum(result is None for result in results)
        raise Unconfirmed(
            f"{missing} of {len(messages)} messages were not confirmed within {self._js.timeout:g} s ({why}): "
            "stored or not. Publishing again with the same ids is safe"
        )

    async def _try(self, messages: Sequence[Outgoing], late: Sequence[bool], results: list[Stored | None]) -> None:
        open = [index for index, result in enumerate(results) if result is None]
        waiting: list[tuple[int, asyncio.Future[Frame]]] = []
        try:
            for count, index in enumerate(open):
                if count >= WINDOW and not await self._take(waiting, results):
                    break
                waiting.append((index, await self._send(messages[index], late[index])))
            while waiting and await self._take(waiting, results):
                pass
        finally:
            # Answers that came in time count, whatever went wrong with the others.
            for index, future in waiting:
                self._note(index, future, results)

    async def _take(self, waiting: list[tuple[int, asyncio.Future[Frame]]], results: list[Stored | None]) -> bool:
        """Wait for the oldest answer; False when it says to try again."""
        index, future = waiting[0]
        ack = read_ack(await future)
        waiting.pop(0)
        if ack is None:
            return False
        results[index] = self._stored(ack)
        return True

    def _note(self, index: int, future: asyncio.Future[Frame], results: list[Stored | None]) -> None:
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:
            try:
                ack = read_ack(future.result())
            except TidingsError:
                return
            if ack is not None:
                results[index] = self._stored(ack)

    async def _send(self, message: Outgoing, late: bool) -> asyncio.Future[Frame]:
        # The same id on two subjects of a stream would count as one message: identity is both.
        headers = message.headers | {"Nats-Msg-Id": f"{message.id} {message.subject}"}
        if not late:
            return await self._link.ask(message.subject, message.body, headers)
        headers |= {
            "Nats-Schedule": f"@at {rfc3339(message.not_before or 0.0)}",
            "Nats-Schedule-Target": self._layout.due(message.subject),
        }
        return await self._link.ask(self._layout.schedule(message.subject, message.id), message.body, headers)

    def _stored(self, ack: Ack) -> Stored:
        # The sequence of a schedule is one of Control, and no place in the log.
        return Stored(0 if ack.stream == self._layout.control else ack.seq, ack.duplicate)
