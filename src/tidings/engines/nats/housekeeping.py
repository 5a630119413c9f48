"""Remove from Control what has served its purpose. Any number of processes may do it at once."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from ...clock import Clock
from ...errors import EngineError
from .api import JetStream
from .layout import Layout
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
    """Purge delayed messages that Events has taken over, and inbox messages their group is done with."""
    since = rfc3339(clock.time() - kept)
    removed = 0
    # `last` is read first: what a consumer without anything open has passed includes all up to there.
    last = int((await js.stream(layout.control))["state"]["last_seq"])
    for source in (await js.stream(layout.events)).get("sources") or []:
        removed += await _purge(js, layout, layout.due(">"), int(source.get("seq", 0)), since)
    for consumer in await js.consumers(layout.control):
        idle = consumer["num_pending"] == 0 and consumer["num_ack_pending"] == 0
        passed = last if idle else int(consumer["ack_floor"]["stream_seq"])
        removed += await _purge(js, layout, layout.inbox(consumer["name"]), passed, since)
    return removed


async def _purge(js: JetStream, layout: Layout, filter: str, passed: int, since: str) -> int:
    young = await js.first_since(layout.control, filter, since)
    below = passed + 1 if young is None else min(passed + 1, young)
    return await js.purge(layout.control, filter, below) if below > 1 else 0
