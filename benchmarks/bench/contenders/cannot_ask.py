"""For contenders without request and reply."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from ..job import Job
from . import Asker


class CannotAsk:
    def serve(self, job: Job, ready: Callable[[], None]) -> None:
        raise NotImplementedError(f"{job.contender} is not measured with requests")

    def asker(self, job: Job) -> AbstractAsyncContextManager[Asker]:
        raise NotImplementedError(f"{job.contender} is not measured with requests")
