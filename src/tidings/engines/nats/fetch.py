"""One consumer's open pull request: what was asked for, what is still to come, and whether it is still alive."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from .connection import Frame
from .layout import NS
from .link import Link

log = logging.getLogger("tidings.engines.nats")

_HEARTBEAT: Final = 2.0
_LONGEST: Final = 60.0
_SLACK: Final = 1.0
_FIRST_REST: Final = 0.05
_LONGEST_REST: Final = 5.0
_PASSING: Final = 3
"""Refusals in a row, as while a leader is elected, that nobody has to hear of."""


class Fetch:
    """At most one request is open at a time, so that a status can be told from that of an older one."""

    def __init__(self, link: Link, stream: str, consumer: str, inbox: str) -> None:
        self.remaining = 0
        """Messages that the open request may still bring; 0 when none is open."""
        self.missing = False
        """The server says that the consumer is not there."""
        self.brief = False
        """The request asked only for what was there already: its end is near."""
        self.flowing = False
        """The last request brought all that it asked for: more may well be waiting."""
        self._link = link
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = inbox
        self._number = 0
        self._silent_after = 0.0
        self._alive = False
        self._generation = -1
        self._refusals = 0
        self._rests_until = 0.0

    @property
    def open(self) -> bool:
        """A request is open and has shown life; one of an older connection or without heartbeats is not."""
        if self.remaining <= 0 or self._generation != self._link.generation:
            return False
        if self._alive:
            self._alive = False
            self._refusals = 0
            self._heard(_LONGEST)
        return asyncio.get_running_loop().time() < self._silent_after

    @property
    def rest(self) -> float:
        """Seconds for which nothing is to be asked, because the server has just refused."""
        return max(0.0, self._rests_until - asyncio.get_running_loop().time()) if self._refusals else 0.0

    async def ask(self, batch: int, wait: float) -> None:
        """Ask for `batch` messages within `wait` seconds (0: only what is there already)."""
        self._number += 1
        request: dict[str, int | bool] = {"batch": batch}
        wait = min(wait, _LONGEST)
        self.brief = wait < 0.001
        if self.brief:
            request["no_wait"] = True
        else:
            request["expires"] = int(wait * NS)
        if wait > 2.5 * _HEARTBEAT:
            request["idle_heartbeat"] = int(_HEARTBEAT * NS)
        self.remaining = batch
        self.missing = self.flowing = False
        self._generation = self._link.generation
        self._heard(wait)
        try:
            await self._link.publish(self._subject, msgspec.json.encode(request), reply=f"{self._inbox}.{self._number}")
        except BaseException:
            self.remaining = 0
            raise

    def message(self) -> None:
        """One more has come."""
        self._alive = True
        if self.remaining > 0:
            self.remaining -= 1
            self.flowing = self.remaining == 0

    def status(self, frame: Frame) -> None:
        """The server said something about a request."""
        if frame.subject.rpartition(".")[2] != str(self._number):
            return
        if frame.status == "100":
            self._heard(_LONGEST)
            return
        self.remaining = 0
        text = frame.header("Description")
        self.missing = frame.status == "503" or (frame.status == "409" and "Consumer Deleted" in text)
        if self.missing or frame.status in ("404", "408"):
            self._refusals = 0
        else:
            self._refused(f"{frame.status} {text}")

    def _refused(self, text: str) -> None:
        self._refusals += 1
        rest = min(_FIRST_REST * 2 ** min(self._refusals - 1, 10), _LONGEST_REST)
        self._rests_until = asyncio.get_running_loop().time() + rest
        if self._refusals > _PASSING:
            log.warning("%s: the server refuses (%s); asking again in %.1f s", self._subject, text, rest)

    def forget(self) -> None:
        """The request is given up."""
        self.remaining = 0
        self._number += 1

    def _heard(self, wait: float) -> None:
        # Short requests have no heartbeats: they end by themselves.
        quiet = 2 * _HEARTBEAT if wait > 2.5 * _HEARTBEAT else wait
        self._silent_after = asyncio.get_running_loop().time() + quiet + _SLACK
