"""Wake-ups without values: who waits looks again at what it waits for."""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes everybody who waits now; who comes later waits for the next ring."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[bool], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> asyncio.Future[bool]:
        """A future that the next ring resolves with True; `leave` with it whatever happens."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        return future

    def leave(self, future: asyncio.Future[bool]) -> None:
        """Wait no longer."""
        self._waiting.pop(future, None)

    def ring(self) -> None:
        """Wake all who wait."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(True)

    async def wait(self) -> None:
        """Return at the next ring."""
        future = self.join()
        try:
            await future
        finally:
            self.leave(future)
