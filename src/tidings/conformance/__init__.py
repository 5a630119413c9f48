"""The conformance suite: what Tidings promises of every engine, as code that anybody can run against theirs.

A *case* is an async function that takes a `World` and fails if the promise in its docstring is not kept. Layer `seam`
speaks to `tidings.engine.Engine`; layer `bus` to the public `Bus`. With pytest:

    @pytest.mark.parametrize("case", cases("seam"), ids=str)
    async def test_seam(case: Case, world: World) -> None:
        await case.run(world)

where the fixture `world` gives each case a fresh, empty namespace. No case skips inside itself. Those that are `wired`
break the server or the wire to it, and take a `WiredWorld`; an engine without either has nothing of the kind to break,
and `cases("seam", wired=False)` leaves them out where the worlds are made, so that a reader sees it.
"""

from __future__ import annotations

from . import (
    agreeing,
    asking,
    attempts,
    claiming,
    database,
    deadletters,
    delivery,
    faults,
    groups,
    handling,
    inspect,
    ledger,
    lifecycle,
    live,
    order,
    ordering,
    publishing,
    receipts,
    replay,
    retention,
    settle,
    stopping,
    talking,
    together,
    upgrades,
)
from .case import PATIENCE, Case, Layer, case, eventually, registered
from .world import Link, WiredWorld, World

__all__ = ["PATIENCE", "Case", "Layer", "Link", "WiredWorld", "World", "case", "cases", "eventually"]

_THEMES = (
    *(delivery, publishing, groups, agreeing, settle, attempts, deadletters, lifecycle, faults, live, inspect, ledger),
    *(handling, stopping, talking, asking, receipts, claiming, database, together, retention, replay, upgrades),
    *(order, ordering),
)  # importing them registers their cases


def cases(layer: Layer = "seam", *, wired: bool = True) -> list[Case]:
    """The cases of a layer, by theme; without those that need a server and a wire if `wired` is False."""
    return [each for each in registered(layer) if wired or not each.wired]
