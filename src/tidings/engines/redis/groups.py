"""Declaring groups, and what one has to do with an entry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from ...clock import Clock
from ...engine import Claim, Entry, Group, GroupState, GroupStats, Stats
from ...subjects import check_group
from .codec import failure_of
from .link import Link
from .wire import Wire


class Groups:
    """What this process has declared is kept here, for a server that was emptied."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._declared: dict[str, Group] = {}

    async def declare(self, groups: Sequence[Group]) -> None:
        """See `Engine.declare`."""
        for group in groups:
            check_group(group.name)
            await self._declare(group)
            self._declared[group.name] = group

    async def declare_again(self, wire: Wire) -> None:
        """The namespace was made anew."""
        for group in list(self._declared.values()):
            await self._link.call_on(wire, "declare", *_shape(group))

    async def forget(self, group: str) -> None:
        """See `Engine.forget`."""
        self._declared.pop(group, None)
        await self._link.call("forget", group)

    async def states(self, entry: Entry) -> dict[str, GroupState]:
        """See `Engine.states`."""
        found = await self._link.call("states", entry.position, entry.subject)
        return {raw[0].decode(): self._state(*raw[1:]) for raw in found}

    async def stats(self) -> Stats:
        """See `Engine.stats`."""
        messages, size, first, last, groups = await self._link.call("stats")
        names = [raw[0].decode() for raw in groups]
        bells = [f"{{{self._link.namespace}}}:ready:{name}" for name in names]
        heard = await self._link.command("PUBSUB", "NUMSUB", *bells)
        pulling = dict(zip(names, heard[1::2], strict=True))
        counted = {name: _counted(raw, int(pulling[name])) for name, raw in zip(names, groups, strict=True)}
        return Stats(int(messages), int(size), int(first), int(last), dict(sorted(counted.items())))

    async def _declare(self, group: Group) -> None:
        more = await self._link.call("declare", *_shape(group))
        while more:
            more = await self._link.call("fill", group.name)

    def _state(
        self, state: bytes, lasts: bytes, about: bytes, attempts: int, failure: bytes, paused: int = 0
    ) -> GroupState:
        failed = failure_of(failure)
        why = f"{failed.error}: {failed.message}"
        at = ""
        if state == b"delayed":
            due = datetime.fromtimestamp(self._clock.time() + float(lasts), UTC)
            at = f"not before {due.isoformat(timespec='seconds').replace('+00:00', 'Z')}"
        match state:
            case b"dead":
                return GroupState("dead", f"{about.decode()}: {why}")
            case b"leased":
                holder = about.decode().partition(":")[0]
                return GroupState("leased", f"by connection {holder}, for {float(lasts):.0f} s more unless renewed")
            case b"parked":
                return GroupState("parked", f"behind {about.decode()}", int(about))
            case b"done":
                return GroupState("done")
            case b"not wanted":
                return GroupState("not wanted", "no claim of the group covers its subject and position")
        if failure:
            told = f"attempt {attempts} failed with {why}"
            return GroupState("retrying", f"{at}; {told}" if at else told)
        return GroupState("waiting", at or ("the group is paused" if paused else ""))


def _counted(raw: list[Any], pulling: int) -> GroupStats:
    waiting, leased, delayed, dead, parked = map(int, raw[1:])
    return GroupStats(waiting, leased, delayed, dead, pulling, parked)


def _shape(group: Group) -> tuple[Any, ...]:
    claims = "\n".join(_line(claim) for claim in group.claims)
    return group.name, repr(group.lease), int(group.paused), int(group.ordered), claims


def _line(claim: Claim) -> str:
    """One claim always gives the same line: the server tells known ones from new ones by it."""
    value: dict[str, Any] = {"filter": claim.filter, "since": claim.since, "skip": [_skip(skip) for skip in claim.skip]}
    return msgspec.json.encode(value).decode()


def _skip(skip: Any) -> dict[str, Any]:
    return {"filter": skip.filter, "since": skip.since, "upto": skip.upto}
