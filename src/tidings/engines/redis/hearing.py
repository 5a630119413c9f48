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


Key: TypeAlias = tuple[bool, bytes]
"""Whether it is a pattern, and the name."""


class Ear:
    """One interest in a channel, or in those that match a pattern."""

    def __init__(self, name: str, pattern: bool, on_message: OnMessage) -> None:
        self.name = name
        self.pattern = pattern
        self.on_message = on_message

    @property
    def key(self) -> Key:
        return self.pattern, self.name.encode()


class Hearing:
    """One line in the server's publish-subscribe mode, made when it is first needed. Subscriptions outlive reconnects.
    `on_lost` is called when the line is lost, `on_connect` when it hears again: what was said meanwhile is missed."""

    def __init__(self, link: Link) -> None:
        self._link = link
        name = f"tidings-{link.namespace}-ear"
        self._line = Line(
            link.address, name, link.within, self._prepare, self._heard, self._lost, lambda: not link.connected
        )
        self._opened = False
        self._opening = asyncio.Lock()
        self._ears: dict[Key, list[Ear]] = {}
        self._confirmed: dict[Key, asyncio.Event] = {}
        self._pongs: list[asyncio.Future[None]] = []
        self.on_lost: list[Callable[[], None]] = []
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
            if (known := self._confirmed.pop(ear.key, None)) is not None:
                known.set()  # a line that is being made ready does not wait for this one
            if (wire := self._line.wire) is not None:
                _tell(wire, "UNSUBSCRIBE", ear.key)

    async def ready(self) -> None:
        """Returns when all that was listened to is heard. Raises `EngineUnavailable`."""
        await self._line.ready(self._link.timeout)

    async def settle(self) -> None:
        """Returns when what was said until now has been heard; at once when the connection is lost."""
        wire = self._line.wire
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
        await self._line.close(abandon=abandon)
        self._release()

    async def _subscribed(self, ear: Ear) -> None:
        async with self._opening:
            if not self._opened:
                await self._line.open(self._link.within)
                self._opened = True
        while True:
            wire = await self._line.ready(self._link.timeout)
            known = self._confirmed.get(ear.key)
            if known is None:
                known = self._confirmed[ear.key] = asyncio.Event()
                _tell(wire, "SUBSCRIBE", ear.key)
            await known.wait()
            if self._confirmed.get(ear.key) is known:
                return

    async def _prepare(self, wire: Wire) -> None:
        """Subscribe to all, again."""
        asked = list(self._ears)
        self._confirmed = {key: asyncio.Event() for key in asked}
        for key in asked:
            _tell(wire, "SUBSCRIBE", key)
        async with asyncio.timeout(self._link.within):
            for event in list(self._confirmed.values()):
                await event.wait()
        for key in asked:
            if key not in self._ears:  # who left meanwhile
                _tell(wire, "UNSUBSCRIBE", key)
        if self._opened and wire.alive:
            for call in self.on_connect:
                call()

    def _lost(self) -> None:
        self._release()
        for call in self.on_lost:
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
        """Nobody waits for what the last wire would have said."""
        waiting, self._confirmed = self._confirmed, {}
        for event in waiting.values():
            event.set()
        for pong in self._pongs:
            if not pong.done():
                pong.set_result(None)
        self._pongs.clear()


def _tell(wire: Wire, word: str, key: Key) -> None:
    pattern, name = key
    wire.tell(f"P{word}" if pattern else word, name)
