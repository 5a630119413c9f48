"""How many messages wait behind a dead letter, for people to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tidings.engine import DeadLetter, Engine

from .lanes import key_of

_PAGE = 500


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
