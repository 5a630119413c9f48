"""How many streams one process holds, in all and for each user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Full(Exception):
    """There is no room for one more stream."""


class Crowd:
    """The streams that are open now."""

    def __init__(self, most: int, per_user: int) -> None:
        self._most = most
        self._per_user = per_user
        self._of: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return self._of.total()

    @contextmanager
    def place(self, user: str | None) -> Iterator[None]:
        """A stream while it is entered; raises `Full`. Users that are not known (None) share only the limit of all."""
        if len(self) >= self._most or (user is not None and self._of[user] >= self._per_user):
            raise Full
        self._of[user] += 1
        try:
            yield
        finally:
            self._of[user] -= 1
            if not self._of[user]:
                del self._of[user]
