"""Listeners of live channels: each signal is given to the handler, one after the other; an error is logged and the
next one is taken. Where something is missing, the listener's `lagged` function is called in its place."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from ..codec import codec_for
from ..engine import Entry, Lagged, Signal
from ..errors import ConfigError
from ..handlers import Handler
from ..logs import message_context
from ..message import ID, Message, decode_header, new_id
from ..publisher import Publisher
from ..registry import Listener, Plan
from ..subjects import covers
from ..work.calling import call, is_stopping, loop_ends, provided

log = logging.getLogger("tidings.live")


class Listening:
    """One listener, ready to hear."""

    def __init__(self, listener: Listener, plan: Plan, publisher: Publisher) -> None:
        _check(listener.handler, plan, publisher.roots)
        self._handler = listener.handler
        self._lagged = listener.lagged
        self._plan = plan
        self._publisher = publisher
        self._stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hears from the moment it is entered."""
        async with self._publisher.engine.listen(self._handler.filters) as signals:
            task = asyncio.create_task(self._hear_all(signals), name=f"tidings-listen-{self._handler.name}")
            try:
                yield
            finally:
                self._stopping = True
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _hear_all(self, signals: AsyncIterator[Signal | Lagged]) -> None:
        async for signal in signals:
            with message_context(
                subject=", ".join(self._handler.filters) if isinstance(signal, Lagged) else signal.channel
            ):
                try:
                    await (self._miss(signal) if isinstance(signal, Lagged) else self._hear(signal))
                except asyncio.CancelledError:
                    if is_stopping() and (self._stopping or loop_ends()):
                        raise
                    log.error("%s was cancelled by something of its own; it hears the next", self._handler.name)
                except (Exception, SystemExit):  # an exit let out would end the event loop, and not the process
                    log.exception("%s failed on what it heard", self._handler.name)

    async def _miss(self, lagged: Lagged) -> None:
        """Tell the listener; who does not want to know has it in the log."""
        if self._lagged is None:
            many = "some" if lagged.missed is None else lagged.missed
            why = "the connection was lost for a while" if lagged.missed is None else "it is too slow"
            log.warning("%s missed %s: %s. @bus.listen(…, lagged=function) is told", self._handler.name, many, why)
            return
        told = self._lagged(lagged)
        if inspect.isawaitable(told):
            await told

    async def _hear(self, signal: Signal) -> None:
        entry = Entry(0, signal.channel, self._publisher.clock.time(), signal.headers, signal.body)
        id = decode_header(signal.headers[ID]) if ID in signal.headers else new_id()
        arguments: dict[str, Any] = {}
        async with AsyncExitStack() as stack:
            for parameter in self._plan.parameters:
                if parameter.kind == "message":
                    data = codec_for(parameter.type).decode(signal.body) if parameter.type else _text(signal.body)
                    arguments[parameter.name] = Message(entry, data, id=id)
                elif parameter.kind == "provided":
                    provider = self._publisher.registry.providers[parameter.type]
                    arguments[parameter.name] = await provided(provider, stack)
                elif parameter.type is str:
                    arguments[parameter.name] = _text(signal.body)
                else:
                    arguments[parameter.name] = codec_for(parameter.type).decode(signal.body)
            await call(self._handler.function, arguments, self._plan.is_async, None)


def _check(handler: Handler, plan: Plan, roots: Sequence[str]) -> None:
    """Raise `ConfigError` for what only durable handlers have."""
    for filter in handler.filters:
        if any(covers(root, filter) for root in roots):
            raise ConfigError(
                f"{handler.name}: {filter!r} is durable: handle it with @bus.on({filter!r}, group=…), which misses "
                "nothing; listen hears only live channels"
            )
    if plan.transactional:
        raise ConfigError(f"{handler.name}: a listener has no transaction; handlers of events and requests have one")
    if plan.batched:
        raise ConfigError(f"{handler.name}: a listener hears one at a time; handlers of events take a Batch")
    if plan.emits:
        raise ConfigError(f"{handler.name}: a listener returns nothing: publish what it has to say with bus.publish")


def _text(body: bytes) -> str:
    """What was said as text; other tools say plain words on channels, not JSON."""
    try:
        return msgspec.json.decode(body, type=str)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")
