"""Which dead letters are meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Final

import msgspec

from ..engine import DeadLetter, Engine
from ..errors import ConfigError
from ..subjects import matches
from .fingerprint import fingerprint

_PAGE: Final = 500


class Selection(msgspec.Struct, frozen=True):
    """Dead letters that have everything that is asked for; with nothing asked for, all of them."""

    keys: tuple[str, ...] = ()
    group: str | None = None
    reason: str | None = None
    error: str | None = None
    """Their fingerprint, or its first characters."""
    subject: str | None = None
    """A filter."""
    since: float | None = None
    """Died at or after, seconds since 1970."""
    before: float | None = None
    """Died before."""

    def takes(self, letter: DeadLetter) -> bool:
        """Whether it is one of them."""
        return (
            (not self.keys or letter.key in self.keys)
            and self.group in (None, letter.group)
            and self.reason in (None, letter.reason)
            and (self.subject is None or matches(self.subject, letter.entry.subject))
            and (self.since is None or letter.died >= self.since)
            and (self.before is None or letter.died < self.before)
            and (self.error is None or fingerprint(letter.failure).startswith(self.error))
        )

    @property
    def counted_by_engine(self) -> bool:
        """Whether the engine knows how many they are, without a look at each."""
        return self == Selection(group=self.group)


async def pages(engine: Engine, selection: Selection) -> AsyncIterator[list[DeadLetter]]:
    """The dead letters that are meant, a page at a time, each page by position. Raises `ConfigError` for what is no
    key.

    One that dies while this runs is found if it stands behind the page that was read last; one that was put back and
    dies again is not.
    """
    source = _at(engine, selection.keys) if selection.keys else _all(engine, selection.group)
    async for page in source:
        if meant := [letter for letter in page if selection.takes(letter)]:
            yield meant


async def count(engine: Engine, selection: Selection) -> Counter[str]:
    """How many are meant of each group; groups with none are left out."""
    if selection.counted_by_engine:
        groups = (await engine.stats()).groups
        return Counter({name: s.dead for name, s in groups.items() if s.dead and selection.group in (None, name)})
    found: Counter[str] = Counter()
    async for page in pages(engine, selection):
        found.update(letter.group for letter in page)
    return found


async def _all(engine: Engine, group: str | None) -> AsyncIterator[list[DeadLetter]]:
    after = 0
    while page := await engine.dead_letters(group, after, _PAGE):
        yield page
        after = page[-1].entry.position


async def _at(engine: Engine, keys: Iterable[str]) -> AsyncIterator[list[DeadLetter]]:
    places = [
        _place(key) for key in dict.fromkeys(keys)
    ]  # all are read before any is looked for: a typo changes nothing
    for group, position in places:
        found = await engine.dead_letters(group, position - 1, 1)
        yield [letter for letter in found if letter.entry.position == position]


def _place(key: str) -> tuple[str, int]:
    group, _, position = key.rpartition("/")
    if not group or not (position.isascii() and position.isdecimal()):
        raise ConfigError(f"{key!r} is no dead letter's key: write group/position, as `tidings dlq ls` shows it")
    return group, int(position)
