"""Dead letters: which are meant, what they have in common, and moving many of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from . import claims
from .engine import DeadLetter, Engine
from .errors import ConfigError

_PAGE: Final = 500
_BATCH: Final = 100


class Selection(msgspec.Struct, frozen=True):
    """Which dead letters are meant: by key, or everything that has this group and this reason."""

    keys: tuple[str, ...] = ()
    group: str | None = None
    reason: str | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Whether it is one of them."""
        return (
            (not self.keys or letter.key in self.keys)
            and self.group in (None, letter.group)
            and self.reason in (None, letter.reason)
        )


class Kind(msgspec.Struct, frozen=True):
    """Dead letters that died of the same thing."""

    group: str
    reason: str
    error: str
    count: int
    first: float
    """When the first of them died, seconds since 1970."""
    last: float
    example: DeadLetter


async def find(engine: Engine, selection: Selection) -> list[DeadLetter]:
    """The dead letters that are meant, by group and position. Raises `ConfigError` for what is no key."""
    if selection.keys:
        letters = [letter for key in dict.fromkeys(selection.keys) async for letter in _at(engine, key)]
    else:
        letters = [letter async for letter in _all(engine, selection.group)]
    return [letter for letter in letters if selection.takes(letter)]


async def _all(engine: Engine, group: str | None) -> AsyncIterator[DeadLetter]:
    # Group by group: the same position can be dead in two groups, and a page of all groups may end between them.
    ledger, _ = await claims.load(engine)
    for name in [group] if group else ledger.groups:
        after = 0
        while page := await engine.dead_letters(name, after, _PAGE):
            for letter in page:
                yield letter
            after = page[-1].entry.position


async def _at(engine: Engine, key: str) -> AsyncIterator[DeadLetter]:
    group, _, position = key.rpartition("/")
    if not group or not position.isdecimal():
        raise ConfigError(f"{key!r} is no dead letter's key: write group/position, as `tidings dlq ls` shows it")
    for letter in await engine.dead_letters(group, int(position) - 1, 1):
        if letter.key == key:
            yield letter


def kinds(letters: Iterable[DeadLetter]) -> list[Kind]:
    """The letters gathered by group, reason and error; the most frequent kind of a group first."""
    gathered: dict[tuple[str, str, str], list[DeadLetter]] = {}
    for letter in letters:
        gathered.setdefault((letter.group, letter.reason, letter.failure.error), []).append(letter)
    found = [
        Kind(
            *what,
            count=len(same),
            first=min(letter.died for letter in same),
            last=max(letter.died for letter in same),
            example=same[0],
        )
        for what, same in gathered.items()
    ]
    return sorted(found, key=lambda kind: (kind.group, -kind.count))


async def move(
    act: Callable[[Sequence[DeadLetter]], Awaitable[int]],
    letters: Sequence[DeadLetter],
    told: Callable[[int], None] = lambda done: None,
) -> int:
    """`engine.redrive` or `engine.discard` many, a batch at a time; returns how many were still there.

    `told` is called with the number looked at so far. Cancelling, or an error, leaves the rest as they are.
    """
    moved = 0
    for start in range(0, len(letters), _BATCH):
        batch = letters[start : start + _BATCH]
        moved += await act(batch)
        told(start + len(batch))
    return moved
