"""Every case of the seam on every engine."""

from __future__ import annotations

import pytest

from tidings.conformance import Case, World, cases


@pytest.mark.parametrize("case", cases("seam"), ids=str)
async def test_seam(case: Case, world: World) -> None:
    """The engine keeps the promise of the case's docstring."""
    await case.run(world)
