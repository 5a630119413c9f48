"""One try of one transaction for many messages: all their handlers, up to the commit.

Without care they run in one go, and a failure spoils it. With care they run in stretches with a savepoint before each:

    ▸ 32 messages ▸ 32 messages ▸ … ▸ what has failed before

A failure takes back its own stretch, of which the others run again, and the rest of the transaction stands. What has
failed before always comes last and behind a savepoint. As all of it is one transaction, in which messages follow one
another as they would in transactions of their own, a failure in it counts when it is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from ..engine import Outgoing
from ..unit import Shared, Units
from .calling import answering
from .handling import Handling
from .outage import Away
from .pace import LONGEST, Pace
from .sharing import Round, Work, judges

STRETCH: Final = 32
"""Messages behind one savepoint: so many run again when one of them fails."""


class Stretch(NamedTuple):
    """Messages whose handlers share flushes."""

    works: list[Work]
    marked: bool
    """Whether a savepoint is set before it."""
    last: bool = False
    """Whether it comes behind all others."""


class Trial:
    """What becomes of the messages of one transaction, if it is committed."""

    def __init__(
        self, handling: Handling, shared: Shared, units: Units, pace: Pace, stopping: Callable[[], bool]
    ) -> None:
        self.done: list[tuple[Work, list[Outgoing]]] = []
        self.failed: list[tuple[Work, BaseException]] = []
        """What failed by itself; nothing of it is in the transaction."""
        self.late: list[Work] = []
        """What was not begun, because the others took long or the worker stops."""
        self.spoilt = False
        """Whether nothing may be committed."""
        self.guilty: tuple[Work, BaseException] | None = None
        """Why, if it is known."""
        self.waited = False
        """Whether a handler has waited for something besides its database."""
        self.hurt = False
        """Whether something failed that a savepoint was needed for."""
        self._handling = handling
        self._shared = shared
        self._units = units
        self._pace = pace
        self._stopping = stopping
        self._start = handling.clock.monotonic()

    async def run(self, works: Sequence[Work]) -> None:
        """Run them all, as far as it makes sense. Raises what the database says if it is no message's fault, and
        `Away`."""
        ahead = deque(self._stretches(works))
        while ahead and not self.spoilt:
            stretch = ahead.popleft()
            if self._enough(False):
                self.late.extend(stretch.works)
            elif stretch.works:
                again = await self._marked(stretch) if stretch.marked else await self._unmarked(stretch)
                ahead.extend(one for one in again if one.last)
                ahead.extendleft(one for one in reversed(again) if not one.last)
        self.hurt = self.hurt or self._shared.refusals > 0

    def _stretches(self, works: Sequence[Work]) -> Iterable[Stretch]:
        first = [work for work in works if not work.delivery.attempts]
        size = STRETCH if self._pace.careful else max(1, len(first))
        for begin in range(0, len(first), size):
            yield Stretch(first[begin : begin + size], self._pace.careful)
        yield Stretch([work for work in works if work.delivery.attempts], True)

    def _enough(self, some: bool) -> bool:
        """Whether the rest has to wait for the next transaction; `some` are done that are not noted here yet."""
        took = self._handling.clock.monotonic() - self._start
        return self._stopping() or (took > LONGEST and (some or bool(self.done)))

    async def _round(self, stretch: Stretch) -> Round:
        round = Round(self._handling, self._shared, stretch.works, self._pace, self._enough, marked=stretch.marked)
        try:
            await round.run()
        finally:
            self.waited = self.waited or round.waited
        return round

    async def _unmarked(self, stretch: Stretch) -> list[Stretch]:
        round = await self._round(stretch)
        self._take(round)
        self.spoilt, self.guilty = round.spoilt, round.guilty
        return []

    async def _marked(self, stretch: Stretch) -> list[Stretch]:
        """Returns what is to be tried again, and how."""
        async with answering(self._handling.clock):
            await self._shared.mark()
        round = await self._round(stretch)
        if round.spoilt and not self._can_go_back(round):
            self.spoilt, self.guilty = True, round.guilty
            return []
        trouble = None if round.spoilt or round.traces else await self._keep()
        if not (round.spoilt or round.traces or trouble):
            self._take(round)
            return []
        self.hurt = True
        async with answering(self._handling.clock):
            await self._shared.undo()
        return self._after(stretch, round, trouble)

    def _can_go_back(self, round: Round) -> bool:
        if round.guilty is None or self._shared.interleaved:
            return False
        error = round.guilty[1]
        return judges(error) and not self._units.transient(error)

    async def _keep(self) -> Exception | None:
        """What is wrong with the stretch."""
        try:
            async with answering(self._handling.clock):
                await self._shared.keep()
        except Away:
            raise
        except Exception as error:
            if self._units.transient(error):
                raise
            return error
        return None

    def _after(self, stretch: Stretch, round: Round, trouble: Exception | None) -> list[Stretch]:
        """Nothing of the stretch is there any more. Who else is to be tried again, and how."""
        alone = stretch.works[0]
        if trouble is not None and len(stretch.works) == 1:
            self.failed.append((alone, trouble))
            return []
        self.failed += round.failed + round.traces
        again: list[Stretch] = []
        if round.guilty is not None and round.guilty[0] is alone:
            self.failed.append(round.guilty)
        elif round.guilty is not None:
            # What it had read may be gone now. Behind the others nothing is taken back any more.
            again.append(Stretch([round.guilty[0]], True, last=True))
        out = {id(work) for work, _ in self.failed} | {id(one.works[0]) for one in again}
        rest = [work for work in stretch.works if id(work) not in out]
        if trouble is not None or (round.guilty is not None and alone.delivery.attempts):
            # Nobody knows who it was, or more of its kind are to be expected.
            return [*again, *(Stretch([work], True) for work in rest)]
        return [*again, Stretch(rest, True)]

    def _take(self, round: Round) -> None:
        self.done += round.done
        self.failed += round.failed
        self.late += round.late
