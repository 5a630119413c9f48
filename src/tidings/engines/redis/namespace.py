"""One namespace on the server: that it is there, and that it is still the same."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, TypeAlias

from redis.exceptions import ResponseError

from ...errors import EngineUnavailable, NoNamespace
from .library import install
from .link import Link
from .safety import check
from .trouble import judged
from .wire import Wire

log = logging.getLogger("tidings.engines.redis")

Mode: TypeAlias = Literal["look", "join", "extend"]
"""What opening a namespace may change. `look`: nothing, and none is an error. `join`: it is made where there is none,
else taken as it is. `extend`: its roots are added to as well."""

LAYOUT: Final = "1"
_GAP: Final = 1_000_000
"""Positions left out by a namespace that is made anew, so that none of those that were lost is given again."""


class Namespace:
    def __init__(self, link: Link, roots: Sequence[str], mode: Mode) -> None:
        self._link = link
        self._mode = mode
        self.roots = tuple(roots)
        """What the namespace stores; all of it is known once it is open."""
        self.seen = 0
        """The highest position that came by here."""
        self.on_made_anew: list[Callable[[Wire], Awaitable[None]]] = []
        """Put back, over this wire, what this process knows of an emptied namespace."""
        link.on_gone = self.find

    async def prepare(self, wire: Wire) -> None:
        """Ready a new connection: check the server, give it our functions, find the namespace."""
        try:
            await check(wire, self._link.address)
            await self.find(wire)
        except ResponseError as error:
            raise _plain(judged(error, self._link.address)) from error

    async def find(self, wire: Wire) -> None:
        """Learn its incarnation; one that was emptied is made anew, once, by whoever notices first."""
        before = self._link.incarnation
        if self._mode != "look":
            await install(wire)
        proposal = "" if self._mode == "look" and not before else secrets.token_hex(8)
        extend = self._mode == "extend" or bool(before)
        found = await self._ask(wire, proposal, extend)
        if not found:
            raise NoNamespace(
                f"there is no namespace {self._link.namespace!r} on {self._link.address.shown}: "
                "start a worker or publisher of it once, or correct the name"
            )
        incarnation, roots, layout = (part.decode() for part in found)
        if layout != LAYOUT:
            raise EngineUnavailable(
                f"the namespace {self._link.namespace!r} has layout {layout}, this release knows {LAYOUT}: "
                "update tidings in this process"
            )
        self.roots = tuple(roots.split())
        self._link.incarnation = incarnation
        if before and before != incarnation:
            self._alarm(made=incarnation == proposal)
            for mend in self.on_made_anew:
                await mend(wire)

    async def _ask(self, wire: Wire, proposal: str, extend: bool) -> list[bytes]:
        behind = self.seen + _GAP if self._link.incarnation else 0
        roots = " ".join(self.roots) if extend else ""
        if not extend and proposal and not await self._answer(wire, "", "", 0):
            roots = " ".join(self.roots)
        return await self._answer(wire, proposal, roots, behind)

    async def _answer(self, wire: Wire, proposal: str, roots: str, behind: int) -> list[bytes]:
        try:
            answer: list[bytes] = await wire.ask(
                "FCALL", "tidings_found", 1, self._link.namespace, proposal, roots, behind
            )
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
            return []
        return answer

    def _alarm(self, *, made: bool) -> None:
        server, name = self._link.address.shown, self._link.namespace
        log.error(
            "%s was emptied: what the namespace %s had stored is gone (FLUSHALL, a restart without its file, or a "
            "failover to an empty replica). %s, and this process declares its groups again",
            server,
            name,
            "It has been made anew" if made else "Another process has made it anew",
        )


def _plain(error: Exception) -> Exception:
    """At start-up there is nothing to wait for."""
    return error if isinstance(error, EngineUnavailable) else EngineUnavailable(str(error))
