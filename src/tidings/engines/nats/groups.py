"""Groups as pairs of durable consumers: making them, adding claims, pausing, removing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from ...engine import Claim, Entry, Group
from ...errors import Conflict, EngineUnavailable
from .api import CONSUMER_EXISTS, WRONG_SEQUENCE, ApiError, JetStream, expect
from .layout import FOREVER, Held, Layout, Shape, shape_of
from .lock import Lock, locked
from .purge import hold
from .wire import Origin, copied, direct_entry, refers

log = logging.getLogger("tidings.engines.nats")

_AT_ONCE: Final = 64
_LEASE: Final = 30.0


class Groups:
    def __init__(self, js: JetStream, layout: Layout) -> None:
        self._js = js
        self._layout = layout
        self._known: dict[str, Shape] = {}

    async def declare(self, group: Group) -> Shape:
        """See `Engine.declare`. A crash in the middle is mended by the next declaration, or by the next reader."""
        info = await self._js.consumer(self._layout.events, group.name)
        if info is None:
            info = await self._create(group)
        shape = _shape(info)
        if _merged(shape, group) != shape:
            shape = await self._add(group)
        if shape.pending:
            shape = await self._complete(group.name)
        await self._pause(group.name, group.paused)
        self._known[group.name] = shape
        return shape

    async def living(self, name: str) -> Shape:
        """The group as it is now, to pull from it. One whose consumers have been removed from under us is made again.

        Raises `Conflict` for a group that nobody declared, or that was removed.
        """
        info = await self._js.consumer(self._layout.events, name)
        inbox = info and await self._js.consumer(self._layout.control, name)
        if info is not None and inbox:
            shape = _shape(info)
        else:
            known = self._known.get(name) if info is None else _shape(info)
            if known is None or await self._js.message(self._layout.control, self._layout.gone(name)):
                raise Conflict(f"group {name!r} is not declared in namespace {self._layout.namespace!r}")
            log.warning("the consumers of group %s were removed: making them again, handled messages come again", name)
            shape = await self._make(known)
        if shape.pending:
            shape = await self._complete(name)
        self._known[name] = shape
        return shape

    def lease(self, name: str) -> float:
        """Seconds of a group's leases, of those that were pulled from or declared here; 0 once it is forgotten."""
        return shape.lease if (shape := self._known.get(name)) else 0.0

    async def ordered(self, name: str) -> bool:
        """Whether the group was declared as ordered."""
        info = await self._js.consumer(self._layout.events, name)
        shape = shape_of(info) if info is not None else None
        return shape is not None and shape.ordered

    async def forget(self, name: str) -> None:
        """See `Engine.forget`. The mark keeps running readers from making the group again."""
        self._known.pop(name, None)
        layout = self._layout
        await self._js.store(layout.gone(name), b"gone", {"Nats-Rollup": "sub"})
        for stream in (layout.events, layout.control):
            await self._js.delete_consumer(stream, name)
        places = (layout.inbox, layout.dead, layout.parked, layout.attempts, layout.reference)
        for subject in (place(name) for place in places):
            await self._js.purge(layout.control, subject)

    async def logged(self, entry: Entry) -> Entry:
        """The entry with body and headers as the log has them."""
        async for frames in self._js.pages(self._layout.events, entry.subject, entry.position, 1):
            found = direct_entry(frames[0])
            if found.position == entry.position:
                return found
            break
        log.error("entry %d of %s is not in the log any more: its body is lost", entry.position, entry.subject)
        return entry

    async def _create(self, group: Group) -> dict[str, Any]:
        start = max(1, min((claim.since for claim in group.claims), default=1))
        claims = tuple(Held(claim, 1) for claim in dict.fromkeys(group.claims))
        await self._js.purge(self._layout.control, self._layout.gone(group.name))
        await self._make(Shape(group.name, claims, group.lease or _LEASE, start, group.ordered))
        info = await self._js.consumer(self._layout.events, group.name)
        if info is None:
            raise EngineUnavailable(f"group {group.name!r} was removed while it was being declared")
        return info

    async def _make(self, shape: Shape) -> Shape:
        layout = self._layout
        # The consumer on Events last: a group counts as there when that one is.
        await self._put(layout.control, layout.inbox_config(shape))
        await self._put(layout.events, layout.group_config(shape))
        info = await self._js.consumer(layout.events, shape.name)
        return _shape(info) if info else shape

    async def _put(self, stream: str, config: dict[str, Any]) -> None:
        try:
            await self._js.put_consumer(stream, config, "create")
        except ApiError as error:
            if error.code != CONSUMER_EXISTS:
                raise

    async def _add(self, group: Group) -> Shape:
        """Write the claims that are new, and another lease, into the consumers."""
        return await self._write(group.name, lambda shape: _merged(shape, group))

    async def _complete(self, name: str) -> Shape:
        """Finish the adding of claims: settle from where on each is handed out, and copy what stands before."""
        await self._write(name, await self._bounded(name))
        shape = _shape_or_conflict(await self._js.consumer(self._layout.events, name), name)
        older = tuple(held.claim for held in shape.claims if held.copied)
        added = tuple(held for held in shape.claims if not held.copied)
        for held in added:
            await self._copy(name, held.claim, older, (held.direct or 1) - 1)
        return await self._write(name, _each(lambda held: replace(held, copied=True) if held in added else held))

    async def _bounded(self, name: str) -> Callable[[Shape], Shape]:
        """From where on added claims are handed out by the consumer.

        Its filters have been widened before, so it delivers whatever is stored from now on. What is stored already
        it may deliver or not, and is therefore taken from the inbox only. The bound is written once: whoever copies
        copies the same.
        """
        shape = _shape_or_conflict(await self._js.consumer(self._layout.events, name), name)
        last = int((await self._js.stream(self._layout.events))["state"]["last_seq"])
        widened = tuple(held for held in shape.claims if held.direct is None)
        return _each(lambda held: replace(held, direct=last + 1) if held in widened else held)

    async def _write(self, name: str, change: Callable[[Shape], Shape]) -> Shape:
        """Write into the consumers what becomes of the group's shape; nobody else changes it meanwhile."""

        async def write(lock: Lock) -> Shape:
            layout = self._layout
            info = await self._js.consumer(layout.events, name)
            before = _shape_or_conflict(info, name)
            shape = change(before)
            # The consumer on Events last: what the group is stands there.
            if shape.lease != before.lease and (inbox := await self._js.consumer(layout.control, name)):
                await self._update(layout.control, inbox, layout.inbox_config(shape), lock)
            if info is not None and shape != before:
                await self._update(layout.events, info, layout.group_config(shape), lock)
            return shape

        return await locked(self._js, self._layout, write)

    async def _update(self, stream: str, info: dict[str, Any], config: dict[str, Any], lock: Lock) -> None:
        await self._js.put_consumer(stream, _kept(info) | config, "update", timeout=lock.left())

    async def _copy(self, name: str, claim: Claim, older: tuple[Claim, ...], last: int) -> None:
        async for frames in self._js.pages(self._layout.events, claim.filter, max(1, claim.since)):
            entries = [direct_entry(frame) for frame in frames]
            wanted = [
                entry
                for entry in entries
                if entry.position <= last
                and claim.wants(entry.subject, entry.position)
                and not any(old.wants(entry.subject, entry.position) for old in older)
            ]
            for begin in range(0, len(wanted), _AT_ONCE):
                some = wanted[begin : begin + _AT_ONCE]
                await asyncio.gather(*(self._into_inbox(name, entry) for entry in some))
            if entries[-1].position > last:
                return

    async def _into_inbox(self, name: str, entry: Entry) -> None:
        body, headers = copied(entry, Origin(entry.subject, entry.time), self._js.link.max_payload)
        if refers(headers):
            await hold(self._js, self._layout, name, entry.position)
        try:
            await self._js.store(self._layout.inbox(name, entry.position), body, headers | expect(0))
        except ApiError as error:
            if error.code != WRONG_SEQUENCE:  # else an earlier try has put it there
                raise

    async def _pause(self, name: str, paused: bool) -> None:
        for stream in (self._layout.control, self._layout.events):
            info = await self._js.consumer(stream, name)
            if info is not None and bool(info.get("paused")) != paused:
                await self._js.pause(stream, name, FOREVER if paused else None)
                await self._paused(stream, name, paused)

    async def _paused(self, stream: str, name: str, paused: bool) -> None:
        """Wait until the consumer itself knows: in a cluster the answer to the request comes before that."""
        until = asyncio.get_running_loop().time() + self._js.timeout
        while (info := await self._js.consumer(stream, name)) and bool(info.get("paused")) != paused:
            if asyncio.get_running_loop().time() > until:
                raise EngineUnavailable(f"group {name} is not {'paused' if paused else 'resumed'} yet: try again")
            await asyncio.sleep(0.02)


def _each(change: Callable[[Held], Held]) -> Callable[[Shape], Shape]:
    """The change of a shape that changes each of its claims."""
    return lambda shape: replace(shape, claims=tuple(map(change, shape.claims)))


def _merged(shape: Shape, group: Group) -> Shape:
    """The shape with the claims, lease and order of the group; claims that are new to it are pending."""
    there = [held.claim for held in shape.claims]
    added = tuple(Held(claim, None, False) for claim in dict.fromkeys(group.claims) if claim not in there)
    return replace(shape, claims=shape.claims + added, lease=group.lease or shape.lease, ordered=group.ordered)


def _kept(info: dict[str, Any]) -> dict[str, Any]:
    """A consumer's configuration as it stands, for an update that loses nothing of it."""
    return {key: value for key, value in info["config"].items() if key not in ("filter_subject", "metadata")}


def _shape(info: dict[str, Any]) -> Shape:
    shape = shape_of(info)
    if shape is None:
        raise Conflict(f"the consumer {info['name']!r} exists and is not one of ours: choose another group name")
    return shape


def _shape_or_conflict(info: dict[str, Any] | None, name: str) -> Shape:
    if info is None:
        raise Conflict(f"group {name!r} was removed")
    return _shape(info)
