"""Every case of the seam on every engine."""

from __future__ import annotations

from conformance.worlds import everywhere
from tidings.conformance import Case, World


@everywhere("seam")
async def test_seam(case: Case, world: World) -> None:
    """The engine keeps the promise of the case's docstring."""
    await case.run(world)
