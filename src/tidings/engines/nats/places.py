"""Where dead letters stand."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Final

from .api import JetStream
from .strangers import places

_LAST: Final = "\U0010ffff"


class Places:
    """The places of dead letters by rising position: listed once, then kept up with what has been stored since.

    So a walk over many pages reads each place once. Places that were emptied meanwhile stay.
    """

    def __init__(self, js: JetStream, stream: str, filter: str) -> None:
        self.filter = filter
        self._js = js
        self._stream = stream
        self._places: list[tuple[int, str]] = []
        self._known: set[tuple[int, str]] = set()
        self._read = 0
        """Sequence up to which everything is in `_places`; 0 before the first look."""

    async def look(self) -> None:
        """Learn of everything that is stored by now."""
        if self._read:
            await self._catch_up()
        else:
            await self._list()

    def behind(self, position: int, size: int) -> Iterator[list[tuple[str, int]]]:
        """Group and position of all that is known behind a position, `size` at a time."""
        for begin in range(bisect_right(self._places, (position, _LAST)), len(self._places), size):
            yield [(group, place) for place, group in self._places[begin : begin + size]]

    async def _list(self) -> None:
        read = int((await self._js.stream(self._stream))["state"]["last_seq"])
        self._known = _places(await self._js.subjects(self._stream, self.filter))
        self._places = sorted(self._known)
        self._read = read

    async def _catch_up(self) -> None:
        async for frames in self._js.pages(self._stream, self.filter, self._read + 1):
            for frame in frames:
                for place in _places([frame.header("Nats-Subject")]) - self._known:
                    self._known.add(place)
                    insort(self._places, place)
                self._read = int(frame.header("Nats-Sequence"))


def _places(subjects: Iterable[str]) -> set[tuple[int, str]]:
    return {(position, group) for group, position in places(subjects)}
