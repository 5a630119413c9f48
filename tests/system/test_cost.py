"""No message may become dearer unnoticed. Bytecodes are counted, not seconds: those of a busy machine mean nothing.

`python tests/cost.py` renews the figures, when a change is worth what it costs.
"""

from __future__ import annotations

from cost import counted, figures, limits


async def test_a_message_costs_what_it_did() -> None:
    """Publishing (alone, together, in bulk), handling and asking execute no more bytecodes per message than the stored
    figures say, with a margin of a tenth."""
    found, allowed = await figures(), limits()
    assert found.keys() == allowed.keys()
    dearer = {name: f"{count:g}, allowed {allowed[name]:g}" for name, count in found.items() if count > allowed[name]}
    assert dearer == {}, "if it has to be: python tests/cost.py"


async def test_what_is_done_more_is_counted() -> None:
    """The count is of every bytecode that runs, also in what is called and awaited, and the same every time."""

    async def step(turns: int) -> int:
        return sum(number for number in range(turns))

    async def work(count: int, turns: int) -> None:
        for _ in range(count):
            await step(turns)

    costs = [await counted(lambda count, turns=turns: work(count, turns), 20) for turns in (10, 10, 110)]  # type: ignore[misc]
    assert costs[0] == costs[1]
    assert 100 * 3 <= costs[2] - costs[0] <= 100 * 12
