"""Receipts that can be waited for: what comes of one publish, seen from any process of the bus."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from .. import claims
from ..clock import timeout as timeout_of
from ..engine import Entry, Lagged
from ..errors import ConfigError, DeadLettered, EngineError, StillWorking
from ..events import require_spec
from ..handlers import filters_of
from ..message import CAUSATION, CORRELATION, decode_header, identity
from ..publisher import Receipt
from ..subjects import check_subject
from . import progress
from .chains import Chain

if TYPE_CHECKING:
    from ..bus import Bus
    from ..running import Running
    from .progress import Progress

_LOOKS: Final = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds between looks at dead letters; the last one again and again. A failure that is told is looked at at once."""
_AT_ONCE: Final = 0.5  # seconds


class Receipts:
    """Follows messages for the receipts of one bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def wait(self, receipt: Receipt, event: Any, timeout: float) -> Any:
        """See `Receipt.wait`."""
        subject = check_subject(event) if isinstance(event, str) else self._subject(event)
        running = await self._bus.connect()
        following = _Following(running, receipt, subject)
        task = asyncio.create_task(following.outcome(), name="tidings-wait")
        try:
            async with timeout_of(running.publisher.clock, timeout) as limit:
                return await asyncio.shield(task)
        except TimeoutError:
            if not limit.expired():
                raise
            idle = await _idle(running, subject)
            raise StillWorking(
                f"no {subject} has come of {receipt.id} within {timeout:g} s{following.trouble}: it may still come"
                f"{idle}. See what it waits for: tidings explain {receipt.position or receipt.id}",
                receipt,
            ) from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def progress(self, receipt: Receipt, events: tuple[Any, ...]) -> Progress:
        """See `Receipt.progress`."""
        filters = filters_of(events)
        if not filters:
            raise ConfigError("say which events would be the outcome: receipt.progress(ItemSaved)")
        running = await self._bus.connect()
        root = await progress.find(running.engine, receipt.id, running.namespace, receipt.position)
        if root is None:
            raise LookupError(f"no message {receipt.id} in the log: not published, not due yet, or too old")
        return await progress.look(running.chains, root, filters)

    def _subject(self, event: type) -> str:
        spec = require_spec(event)
        self._bus.registry.know(spec)
        return spec.subject


async def _idle(running: Running, subject: str) -> str:
    """Of the groups that an event can come from those without a worker, for people; empty where that is not known at
    once."""
    with contextlib.suppress(EngineError, TimeoutError):
        async with asyncio.timeout(_AT_ONCE):
            ledger, _ = await claims.load(running.engine)
            counts = (await running.engine.stats()).groups
            names = [name for name in progress.leading(ledger, [subject]) if name in counts]
            idle = [name for name in names if not counts[name].pulling and not counts[name].leased]
            return f", but no worker of {' and '.join(idle)} is pulling" if idle else ""
    return ""


class _Following:
    """One wait: the arrival of the event, or the end of all hope, whichever comes first."""

    def __init__(self, running: Running, receipt: Receipt, subject: str) -> None:
        self._running = running
        self._engine = running.engine
        self._clock = running.publisher.clock
        self._receipt = receipt
        self._subject = subject
        self._root: Entry | None = None
        self._kin: Chain | None = None
        """All that shares the correlation of a root that has causes itself."""
        self._failed = asyncio.Event()
        self.trouble = ""
        """What keeps it from looking, for people."""

    async def outcome(self) -> Any:
        """The event's data; raises `DeadLettered`. Goes on for ever otherwise, also while the engine is away."""
        arrival = asyncio.create_task(self._arrival(), name="tidings-wait-arrival")
        verdict = asyncio.create_task(self._verdict(), name="tidings-wait-verdict")
        try:
            await asyncio.wait({arrival, verdict}, return_when=asyncio.FIRST_COMPLETED)
            if verdict.done() and not arrival.done():
                raise verdict.result()
            return await arrival
        finally:
            arrival.cancel()
            verdict.cancel()
            await asyncio.gather(arrival, verdict, return_exceptions=True)

    async def _arrival(self) -> Any:
        hub = self._running.hub((self._subject,))
        place: int | None = None
        while True:
            try:
                reader, _ = await hub.join()
                if place is None:
                    place = await self._start(reader.position)
                reader.position = min(place, reader.position)
                async for news in hub.follow(reader):
                    place = reader.position
                    if isinstance(news, Entry):
                        if await self._is_ours(news):
                            return self._running.decode(news).data
                    elif isinstance(news, Lagged) or news.correlation == self._chain:
                        self._failed.set()
            except EngineError as error:
                self.trouble = f" ({error})"
            await self._clock.sleep(_LOOKS[0])

    async def _start(self, last: int) -> int:
        """The position behind which the event stands."""
        receipt = self._receipt
        self._root = await progress.find(self._engine, receipt.id, self._running.namespace, receipt.position)
        if self._root is not None:
            return self._root.position
        return receipt.position or last

    @property
    def _chain(self) -> str:
        """The id that the event must carry as correlation."""
        if self._root is None:
            return self._receipt.id
        given = self._root.headers.get(CORRELATION)
        return decode_header(given) if given else self._receipt.id

    async def _is_ours(self, entry: Entry) -> bool:
        """Whether an entry comes of the receipt's message. One that was itself published by a handler shares its
        correlation with others: then the causes are followed back to it."""
        if decode_header(entry.headers.get(CORRELATION, "")) != self._chain:
            return False
        if self._root is None or self._chain == self._receipt.id:
            return True
        namespace = self._running.namespace
        if self._kin is None:
            self._kin = Chain(self._engine, namespace, self._root, [">"])
        causes = {
            identity(each, namespace): decode_header(each.headers.get(CAUSATION, ""))
            for each in (*await self._kin.read(), entry)
        }
        cause = causes.pop(identity(entry, namespace))
        while cause and cause != self._receipt.id:
            cause = causes.pop(cause, "")
        return cause == self._receipt.id

    async def _verdict(self) -> DeadLettered:
        """Returns once no group is left that could emit the event."""
        pauses = iter(_LOOKS)
        while True:
            with contextlib.suppress(TimeoutError):
                async with timeout_of(self._clock, next(pauses, _LOOKS[-1])):
                    await self._failed.wait()
            self._failed.clear()
            try:
                if (error := await self._look()) is not None:
                    return error
                self.trouble = ""
            except EngineError as error:
                self.trouble = f" ({error})"

    async def _look(self) -> DeadLettered | None:
        if self._root is None:
            receipt = self._receipt
            self._root = await progress.find(self._engine, receipt.id, self._running.namespace, receipt.position)
        if self._root is None:
            return None
        found = await progress.look(self._running.chains, self._root, [self._subject])
        if found.state != "dead":
            return None
        why = "; ".join(f"{failed.group}: {failed.reason} ({failed.error})" for failed in found.failures)
        keys = " ".join(letter.key for letter in found.letters)
        return DeadLettered(
            f"no {self._subject} will come of {self._receipt.id}: {why}. See why: tidings dlq show {keys}. "
            f"Once mended: tidings dlq redrive {keys}",
            found.letters,
        )
