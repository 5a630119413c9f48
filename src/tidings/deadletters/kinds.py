"""What many dead letters have in common."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable

import msgspec
from msgspec.structs import replace

from ..engine import DeadLetter
from .fingerprint import fingerprint


class Kind(msgspec.Struct, frozen=True):
    """Dead letters of one group that died of the same thing."""

    group: str
    reason: str
    fingerprint: str
    count: int
    first: float
    """When the first of them died, seconds since 1970."""
    last: float
    sample: DeadLetter
    """The first in the log."""

    def joined(self, letter: DeadLetter) -> Kind:
        """With one more."""
        first, last = min(self.first, letter.died), max(self.last, letter.died)
        return replace(self, count=self.count + 1, first=first, last=last)


async def kinds(pages: AsyncIterable[Iterable[DeadLetter]]) -> list[Kind]:
    """The letters gathered by group, reason and fingerprint, the most frequent of a group first. Keeps one of each."""
    found: dict[tuple[str, str, str], Kind] = {}
    async for page in pages:
        for letter in page:
            what = (letter.group, letter.reason, fingerprint(letter.failure))
            known = found.get(what)
            found[what] = known.joined(letter) if known else Kind(*what, 1, letter.died, letter.died, letter)
    return sorted(found.values(), key=lambda kind: (kind.group, -kind.count, kind.fingerprint))
