"""Remove from Control what has served its purpose. Any number of processes may do it at once."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from ...clock import Clock
from ...errors import EngineError
from .api import JetStream
from .later import Later
from .layout import Layout
from .strangers import places
from .wire import rfc3339

log = logging.getLogger("tidings.engines.nats")

_EVERY: Final = 60.0
KEPT: Final = 600.0
"""Seconds that handled copies stay: by then no late word about them is under way any more."""


async def keep_tidy(js: JetStream, layout: Layout, clock: Clock) -> None:
    """`tidy` about once a minute, until cancelled."""
    while True:
        await asyncio.sleep(_EVERY * random.uniform(0.5, 1.5))  # noqa: S311
        try:
            await tidy(js, layout, clock)
        except EngineError as error:
            log.debug("housekeeping: %s", error)


async def tidy(js: JetStream, layout: Layout, clock: Clock, kept: float = KEPT) -> int:
    """Purge delayed messages that Events has taken over, inbox messages their group is done with, attempts on messages
    that are done, and marks on entries that nothing refers to any more. Put delayed messages that strangers ended in
    force again. Returns how many messages were removed."""
    since = rfc3339(clock.time() - kept)
    removed = 0
    if restored := await Later(js, layout).restore():
        log.warning("%d delayed messages go on: strangers had named their places as reply subjects", restored)
    # `last` is read first: what a consumer without anything open has passed includes all up to there.
    last = int((await js.stream(layout.control))["state"]["last_seq"])
    for source in (await js.stream(layout.events)).get("sources") or []:
        removed += await _purge(js, layout, layout.due(">"), int(source.get("seq", 0)), since)
    for consumer in await js.consumers(layout.control):
        name, floor = consumer["name"], int(consumer["ack_floor"]["stream_seq"])
        open = await js.standing(layout.control, layout.inbox(name), floor + 1)
        removed += await _purge(js, layout, layout.inbox(name), last if open is None else open - 1, since)
    return removed + await _forget_attempts(js, layout, since) + await _forget_marks(js, layout, since)


async def _forget_attempts(js: JetStream, layout: Layout, since: str) -> int:
    """The register's entries of messages that were finished by a worker that died before it could clear them."""
    tried = await _places(js, layout, layout.attempts("*", "*"))
    waiting = await _places(js, layout, layout.inbox("*", "*")) if tried else set()
    waiting |= await _places(js, layout, layout.parked("*", "*")) if tried else set()
    removed = 0
    for group in {group for group, _ in tried - waiting}:
        consumer = await js.consumer(layout.events, group)
        floor = int(consumer["ack_floor"]["stream_seq"]) if consumer else 0
        for position in sorted(position for name, position in tried - waiting if name == group and position <= floor):
            removed += await _purge_old(js, layout, layout.attempts(group, position), since)
    return removed


async def _forget_marks(js: JetStream, layout: Layout, since: str) -> int:
    marks = await _places(js, layout, layout.reference("*", "*"))
    if not marks:
        return 0
    used = [await _places(js, layout, place("*", "*")) for place in (layout.dead, layout.inbox, layout.parked)]
    removed = 0
    for group, position in marks.difference(*used):
        removed += await _purge_old(js, layout, layout.reference(group, position), since)
    return removed


async def _places(js: JetStream, layout: Layout, filter: str) -> set[tuple[str, int]]:
    """Group and position of what stands on our subjects."""
    return places(await js.subjects(layout.control, filter))


async def _purge_old(js: JetStream, layout: Layout, subject: str, since: str) -> int:
    """Purge a subject unless something on it is young."""
    young = await js.first_since(layout.control, subject, since)
    return await js.purge(layout.control, subject) if young is None else 0


async def _purge(js: JetStream, layout: Layout, filter: str, passed: int, since: str) -> int:
    young = await js.first_since(layout.control, filter, since)
    below = passed + 1 if young is None else min(passed + 1, young)
    return await js.purge(layout.control, filter, below) if below > 1 else 0
