"""Counts, and what each group has to do with one entry."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from ...clock import Clock
from ...engine import Entry, GroupState, GroupStats, Stats
from .api import NO_STREAM, ApiError, JetStream
from .connection import Frame
from .headers import ORIGIN
from .layout import Layout, Shape, shape_of
from .link import Disconnected
from .pull import Holding
from .redrive import Graveyard
from .strangers import is_foreign
from .wire import Attempts, origin_of

_ANSWERS_WITHIN = 0.25


class Census:
    def __init__(self, js: JetStream, layout: Layout, clock: Clock, graveyard: Graveyard) -> None:
        self._js = js
        self._layout = layout
        self._clock = clock
        self._graveyard = graveyard

    async def subjects(self, filter: str) -> dict[str, int]:
        return await self._js.subjects(self._layout.events, filter)

    async def stats(self) -> Stats:
        """See `Engine.stats`."""
        layout = self._layout
        state = (await self._js.stream(layout.events))["state"]
        groups = await self._consumers(layout.events)
        inboxes = await self._consumers(layout.control)
        dead = await self._js.subjects(layout.control, layout.dead("*", "*"))
        parked = await self._js.subjects(layout.control, layout.parked("*", "*"))
        now = self._clock.time()
        delayed = [
            subject.split(".")[-2] for subject, attempts in (await self._retrying()).items() if attempts.until > now
        ]
        counts: dict[str, GroupStats] = {}
        for name, consumer in groups.items():
            inbox = inboxes.get(name, {})
            pending = consumer["num_ack_pending"] + inbox.get("num_ack_pending", 0)
            waits = min(delayed.count(name), pending)
            counts[name] = GroupStats(
                waiting=consumer["num_pending"] + inbox.get("num_pending", 0) - await self._unwanted(consumer),
                leased=pending - waits,
                delayed=waits,
                dead=sum(subject.split(".")[-2] == name for subject in dead),
                pulling=consumer["num_waiting"],
                parked=sum(subject.split(".")[-2] == name for subject in parked),
            )
        return Stats(state["messages"], state["bytes"], state["first_seq"], state["last_seq"], counts)

    async def states(self, entry: Entry) -> dict[str, GroupState]:
        """See `Engine.states`."""
        groups = await self._consumers(self._layout.events)
        inboxes = await self._consumers(self._layout.control)
        names = list(groups)
        found = await asyncio.gather(*(self.state(entry, groups[name], inboxes.get(name)) for name in names))
        return dict(zip(names, found, strict=True))

    async def state(self, entry: Entry, consumer: dict[str, Any], inbox: dict[str, Any] | None) -> GroupState:
        """What one group, by its two consumers, has to do with an entry."""
        layout, position = self._layout, entry.position
        shape = shape_of(consumer)
        assert shape is not None
        letter = await self._graveyard.look(shape.name, position)
        if letter is not None:
            return GroupState(
                "dead", f"{letter.reason} after {letter.attempts} attempts: {letter.failure.message[:200]}"
            )
        aside = await self._js.last(layout.control, layout.parked(shape.name, position))
        if aside is not None and aside.header(ORIGIN) and (parked := origin_of(aside).parked) is not None:
            return GroupState("parked", f"behind {parked.behind}", parked.behind)
        sent = await self._js.last(layout.control, layout.inbox(shape.name, position))
        if sent is not None and inbox is not None:
            return await self._progress(shape, position, int(sent.header("Nats-Sequence")), inbox)
        if not shape.wants(entry.subject, position):
            return GroupState("not wanted", "no claim of the group covers its subject and position")
        return await self._progress(shape, position, position, consumer)

    async def _progress(self, shape: Shape, position: int, sequence: int, consumer: dict[str, Any]) -> GroupState:
        """Where a consumer stands with the message of a sequence in its stream."""
        name = shape.name
        if sequence <= consumer["ack_floor"]["stream_seq"]:
            return GroupState("done")
        if sequence > consumer["delivered"]["stream_seq"]:
            return GroupState("waiting", "the group is paused" if consumer.get("paused") else "not handed out yet")
        if consumer["num_ack_pending"] == 0:
            return GroupState("done")
        retrying = await self._retrying(name)
        now = self._clock.time()
        mine = retrying.get(self._layout.attempts(name, position))
        if mine is not None and mine.until > now:
            return GroupState(
                "retrying",
                f"for {mine.until - now:.0f} s more, after {mine.attempts} attempts: {mine.failure.message[:200]}",
            )
        holdings = await self._holdings(name, position)
        for holding in holdings:
            if holding.since is not None:
                return GroupState("leased", f"by {holding.reader} for {max(0.0, now - holding.since):.0f} s")
        accounted = sum(holding.count for holding in holdings)
        accounted += sum(attempts.until > now for attempts in retrying.values())
        if accounted >= consumer["num_ack_pending"]:
            return GroupState("done")
        if holdings:
            why = "none listens to its subject, or its worker died"
            return GroupState("leased", f"by no running worker: {why}; again within {shape.lease:g} s")
        return GroupState("leased", f"by a reader that does not answer, or on its way: back within {shape.lease:g} s")

    async def _holdings(self, group: str, position: int) -> list[Holding]:
        """What the readers of the group say that they hold."""
        try:
            frames, _ = await self._js.link.collect(
                self._layout.who(group), str(position).encode(), _settles, _ANSWERS_WITHIN
            )
        except Disconnected:
            return []
        return [msgspec.json.decode(frame.body, type=Holding) for frame in frames if not frame.status]

    async def _retrying(self, group: str = "*") -> dict[str, Attempts]:
        """The attempt register: what has failed and is not done."""
        found: dict[str, Attempts] = {}
        async for frames in self._js.pages(self._layout.control, self._layout.attempts(group, "*"), 1):
            for frame in frames:
                if frame.body and not is_foreign(frame):
                    found[frame.header("Nats-Subject")] = msgspec.json.decode(frame.body, type=Attempts)
        return found

    async def _consumers(self, stream: str) -> dict[str, dict[str, Any]]:
        try:
            found = await self._js.consumers(stream)
        except ApiError as error:
            if error.code == NO_STREAM:
                return {}
            raise
        ours = stream == self._layout.control
        return {info["name"]: info for info in found if ours or shape_of(info) is not None}

    async def _unwanted(self, consumer: dict[str, Any]) -> int:
        """Of what the consumer has yet to deliver, how much will be passed over because no claim wants it."""
        shape = shape_of(consumer)
        assert shape is not None
        first = max(shape.start, consumer["delivered"]["stream_seq"] + 1)
        bounds = [held.direct or 0 for held in shape.claims]
        bounds += [held.claim.since for held in shape.claims]
        bounds += [skip.upto + 1 for held in shape.claims for skip in held.claim.skip]
        last = max(bounds, default=0)
        if first >= last or not consumer["num_pending"]:
            return 0
        return sum([await self._passed(shape, filter, first, last) for filter in consumer["config"]["filter_subjects"]])

    async def _passed(self, shape: Shape, filter: str, first: int, last: int) -> int:
        passed = 0
        async for frames in self._js.pages(self._layout.events, filter, first):
            for frame in frames:
                position = int(frame.header("Nats-Sequence"))
                if position >= last:
                    return passed
                passed += not shape.verdict(frame.header("Nats-Subject"), position)
        return passed


def _settles(frame: Frame) -> bool:
    """An answer that makes waiting for others pointless: nobody is there, or the holder has spoken."""
    return frame.status == "503" or (not frame.status and b'"since":null' not in frame.body)
