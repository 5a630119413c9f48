"""What waits behind what in an ordered group, for people to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tidings.engine import DeadLetter, Engine, GroupState

from .lanes import key_of

_PAGE = 500
_MOST = 10
"""Messages that one explanation looks at."""


async def explained(engine: Engine, group: str, state: GroupState) -> GroupState:
    """The state of what is parked, with the state of what it waits for; any other state as it is."""
    detail, at = state.detail, state
    for _ in range(_MOST):
        if at.state != "parked" or not at.behind:
            break
        entries = await engine.read([">"], at.behind - 1, 1)
        if not entries or entries[0].position != at.behind:
            break
        place, at = f"{group}/{at.behind}", (await engine.states(entries[0]))[group]
        if at.state == "parked":
            detail += f", which is parked {at.detail}"
            continue
        named = f"dead (`tidings dlq show {place}`)" if at.state == "dead" else at.state
        detail += f", which is {named}" + (f": {at.detail}" if at.detail else "")
    return GroupState(state.state, detail, state.behind)


async def parked_behind(engine: Engine, letters: Sequence[DeadLetter]) -> dict[str, int]:
    """By the letter's key, for those that any wait behind. The oldest dead letter of an ordering key has them all."""
    found: Counter[str] = Counter()
    counts = (await engine.stats()).groups
    for group in {letter.group for letter in letters}:
        if group not in counts or not counts[group].parked:
            continue
        oldest: dict[str, DeadLetter] = {}
        for letter in sorted((each for each in letters if each.group == group), key=lambda each: each.entry.position):
            oldest.setdefault(key_of(letter.entry), letter)
        after = 0
        while entries := await engine.parked(group, after, _PAGE):
            for entry in entries:
                letter_before = oldest.get(key_of(entry))
                if letter_before is not None and letter_before.entry.position < entry.position:
                    found[letter_before.key] += 1
            after = entries[-1].position
    return dict(found)
