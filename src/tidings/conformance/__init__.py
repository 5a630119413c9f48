"""The conformance suite: what Tidings promises of every engine, as code that anybody can run against theirs.

A *case* is an async function that takes a `World` and fails if the promise in its docstring is not kept. Layer `seam`
speaks to `tidings.engine.Engine`; layer `bus` to the public `Bus`. With pytest:

    @pytest.mark.parametrize("case", cases("seam"), ids=str)
    async def test_seam(case: Case, world: World) -> None:
        await case.run(world)

where the fixture `world` gives each case a fresh, empty namespace. No case skips inside itself: an engine that cannot
keep a promise is left out where the worlds are made, so that a reader sees the list.
"""

from __future__ import annotations

from . import delivery, groups, inspect, ledger, lifecycle, live, settle
from .case import PATIENCE, Case, Layer, case, eventually, registered
from .world import World

__all__ = ["PATIENCE", "Case", "Layer", "World", "case", "cases", "eventually"]

_THEMES = (delivery, groups, settle, lifecycle, live, inspect, ledger)  # importing them registers their cases


def cases(layer: Layer = "seam") -> list[Case]:
    """All cases of a layer, by theme."""
    return registered(layer)
