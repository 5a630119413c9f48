"""What is heard beside the answers: bells that say that something is there, channels, questions and replies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ...errors import EngineUnavailable
from .link import Line, Link
from .wire import Wire

log = logging.getLogger("tidings.engines.redis")

OnMessage: TypeAlias = Callable[[str, bytes], None]
"""Takes the channel and what was said."""

_KINDS: Final = {b"message": False, b"pmessage": True}


class Ear:
    """One interest in a channel, or in those that match a pattern."""

    def __init__(self, name: str, pattern: bool, on_message: OnMessage) -> None:
        self.name = name
        self.pattern = pattern
        self.on_message = on_message

    @property
    def key(self) -> tuple[bool, bytes]:
        return self.pattern, self.name.encode()


class Hearing:
    """One line in the server's publish-subscribe mode, made when it is first needed. Subscriptions outlive reconnects;
    `on_connect` is called after each: what was said meanwhile was missed."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._line: Line | None = None
        self._opening = asyncio.Lock()
        self._ears: dict[tuple[bool, bytes], list[Ear]] = {}
        self._confirmed: dict[tuple[bool, bytes], asyncio.Event] = {}
        self._pongs: list[asyncio.Future[None]] = []
        self.on_connect: list[Callable[[], None]] = []

    async def listen(self, name: str, on_message: OnMessage, *, pattern: bool = False) -> Ear:
        """Hears from the return on. Raises `EngineUnavailable`."""
        ear = Ear(name, pattern, on_message)
        self._ears.setdefault(ear.key, []).append(ear)
        try:
            async with asyncio.timeout(self._link.timeout):
                await self._subscribed(ear)
        except TimeoutError:
            self.leave(ear)
            raise EngineUnavailable(f"{self._link.address.shown} did not confirm a subscription") from None
        except BaseException:
            self.leave(ear)
            raise
        return ear

    def leave(self, ear: Ear) -> None:
        """Hear no more."""
        ears = self._ears.get(ear.key, [])
        if ear in ears:
            ears.remove(ear)
        if not ears and self._ears.pop(ear.key, None) is not None:
            self._confirmed.pop(ear.key, None)
            if (wire := self._wire) is not None:
                wire.tell("PUNSUBSCRIBE" if ear.pattern else "UNSUBSCRIBE", ear.name)

    async def settle(self) -> None:
        """Returns when what was said until now has been heard; at once when the connection is lost."""
        wire = self._wire
        if wire is None or not self._ears:
            return
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        wire.tell("PING", "settle")
        try:
            async with asyncio.timeout(2.0):
                await pong
        except TimeoutError:
            return

    async def close(self, *, abandon: bool = False) -> None:
        if self._line is not None:
            await self._line.close(abandon=abandon)

    @property
    def _wire(self) -> Wire | None:
        return None if self._line is None else self._line.wire

    async def _subscribed(self, ear: Ear) -> None:
        async with self._opening:
            if self._line is None:
                link = self._link
                name = f"tidings-{link.namespace}-ear"
                line = Line(link.address, name, link.within, self._prepare, self._heard, lambda: not link.connected)
                await line.open(link.within)
                self._line = line
        while True:
            wire = await self._line.ready(self._link.timeout)
            known = self._confirmed.get(ear.key)
            if known is None:
                known = self._confirmed[ear.key] = asyncio.Event()
                wire.tell("PSUBSCRIBE" if ear.pattern else "SUBSCRIBE", ear.name)
            await known.wait()
            if self._confirmed.get(ear.key) is known:
                return

    async def _prepare(self, wire: Wire) -> None:
        """Subscribe to all again; nobody waits for the answers, which come in before anything that is said later."""
        waiting = self._confirmed
        self._confirmed = {key: asyncio.Event() for key in self._ears}
        for pattern, name in self._ears:
            wire.tell("PSUBSCRIBE" if pattern else "SUBSCRIBE", name)
        for event in waiting.values():
            event.set()
        self._release()
        async with asyncio.timeout(self._link.within):
            await asyncio.gather(*(event.wait() for event in self._confirmed.values()))
        if self._line is not None:
            for call in self.on_connect:
                call()

    def _heard(self, push: Any) -> None:
        if not isinstance(push, list):
            return
        kind = push[0]
        if kind in _KINDS:
            pattern = _KINDS[kind]
            for ear in list(self._ears.get((pattern, push[1]), ())):
                try:
                    ear.on_message(push[-2].decode("utf-8", "replace"), push[-1])
                except Exception:  # who reads the wire would end with it
                    log.exception("what was said on %s could not be taken in", ear.name)
        elif kind in (b"subscribe", b"psubscribe"):
            event = self._confirmed.get((kind == b"psubscribe", push[1]))
            if event is not None:
                event.set()
        elif kind == b"pong" and push[1] == b"settle" and self._pongs:
            pong = self._pongs.pop(0)
            if not pong.done():
                pong.set_result(None)

    def _release(self) -> None:
        for pong in self._pongs:
            if not pong.done():
                pong.set_result(None)
        self._pongs.clear()
