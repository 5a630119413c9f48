"""Every case of the bus on every engine."""

from __future__ import annotations

from conformance.worlds import everywhere
from tidings.conformance import Case, World


@everywhere("bus")
async def test_bus(case: Case, world: World) -> None:
    """The bus keeps the promise of the case's docstring."""
    await case.run(world)
