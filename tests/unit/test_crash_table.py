"""The table of the crash matrix, as it is written and read."""

from __future__ import annotations

from crash.matrix import CELLS, Found
from crash.table import sound_in, table


def test_a_run_goes_on_where_another_one_ended() -> None:
    """What a table shows as sound after as many kills is left out; what was not sound or killed less often is not."""
    sound, torn, short = (Found(cell, 100, 1_500) for cell in CELLS[:3])
    torn.doubled.append("1: 2 effects")
    short.kills = 99
    text = f"# A page\n\n{table([sound, torn, short])}\n"
    assert sound_in(text, 100) == [sound]
    assert sound_in(text, 99) == [short]
