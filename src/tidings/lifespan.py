"""A bus in the lifespan of an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from .bus import Bus

log = logging.getLogger("tidings")


class Lifespan:
    """Connects while an ASGI application runs; with `workers=True` its handlers run in the same process."""

    def __init__(self, bus: Bus, *, workers: bool) -> None:
        self._bus = bus
        self._workers = workers

    @overload
    def __call__(self, app: None = None, *, workers: bool) -> Lifespan: ...

    @overload
    def __call__(self, app: Any) -> AbstractAsyncContextManager[None]: ...

    def __call__(self, app: Any = None, *, workers: bool | None = None) -> Any:
        if app is None:
            return Lifespan(self._bus, workers=self._workers if workers is None else workers)
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        if self._workers and self._bus.registry.idle:
            log.warning("%r has no handlers, and workers=True: import the modules with @bus.on(…)", self._bus)
        async with self._bus:
            if self._workers and not (await self._bus.connect()).lent:
                await self._bus.work()
            yield
