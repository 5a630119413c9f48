"""Dead letters of the memory engine: one at most for each group and original position."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter

from msgspec.structs import replace

from tidings.engine import DeadLetter

Key = tuple[int, str]


class DeadLetters:
    """Dead letters in the order of their original positions."""

    def __init__(self) -> None:
        self._letters: dict[Key, DeadLetter] = {}
        self._order: list[Key] = []
        self._counts: Counter[str] = Counter()

    def put(self, letter: DeadLetter) -> None:
        """Keep it until somebody takes it."""
        key = (letter.entry.position, letter.group)
        if key not in self._letters:
            insort(self._order, key)
            self._counts[letter.group] += 1
        self._letters[key] = letter

    def amend(self, letter: DeadLetter, body: bytes) -> bool:
        """Exchange the body of exactly this letter, and keep the first one."""
        kept = self.find(letter.group, letter.entry.position)
        if kept is None or kept.died != letter.died or kept.entry.body != letter.entry.body:
            return False
        first = kept.entry.body if kept.original is None else kept.original
        self.put(replace(kept, entry=replace(kept.entry, body=body), original=first))
        return True

    def find(self, group: str, position: int) -> DeadLetter | None:
        """The dead letter of this group for this entry."""
        return self._letters.get((position, group))

    def take(self, letter: DeadLetter) -> DeadLetter | None:
        """Remove and return it, unless somebody did before, or it has died anew since `letter` was read."""
        key = (letter.entry.position, letter.group)
        kept = self._letters.get(key)
        if kept is None or kept.died != letter.died:
            return None
        self._remove(key)
        return kept

    def count(self, group: str) -> int:
        """How many the group has."""
        return self._counts[group]

    def page(self, group: str | None, after: int, limit: int) -> list[DeadLetter]:
        """By rising position behind `after`. Letters of one position are never parted, or paging would lose some."""
        found: list[DeadLetter] = []
        for position, owner in self._order[bisect_right(self._order, (after, "\U0010ffff")) :]:
            if len(found) >= limit and found[-1].entry.position != position:
                break
            if group is None or owner == group:
                found.append(self._letters[position, owner])
        return found

    def forget(self, group: str) -> None:
        """Remove all of a group."""
        for key in [key for key in self._order if key[1] == group]:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        del self._letters[key]
        del self._order[bisect_right(self._order, key) - 1]
        self._counts[key[1]] -= 1
