"""What happens to one delivery in its handler: decode, begin, call, follow up, commit; and what becomes of it.

This file decides outcomes and never talks to the engine about them: the worker settles.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import socket
import traceback
import types
import typing
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from .clock import timeout
from .codec import Codec, codec_for
from .engine import Dead, Delivery, Done, Entry, Failure, Outcome, Outgoing, Reason, Release, RetryAfter
from .errors import DecodeError
from .events import spec_of
from .message import TYPE, Message, current_message, decode_header, follow_up_id, identity
from .publisher import Publisher
from .registry import Handler, Plan, Provider
from .retry import Reject, RetryLater, RetryPolicy
from .unit import InboxKey, Unit
from .version import __version__

log = logging.getLogger("tidings.worker")

in_transaction: contextvars.ContextVar[bool] = contextvars.ContextVar("tidings_in_transaction", default=False)
"""Whether the running handler has a transaction: then `bus.publish` would not belong to it."""

_MOST_TRACEBACK = 8_000
_HOST = socket.gethostname()


class LeaseLost(Exception):
    """The lease ended while the handler ran: the message may be somebody else's by now; nothing was committed."""


class Handling:
    """One handler, ready to take deliveries."""

    def __init__(
        self, handler: Handler, plan: Plan, publisher: Publisher, namespace: str, policy: RetryPolicy, limit: float
    ) -> None:
        self.handler = handler
        self.plan = plan
        self.publisher = publisher
        self.namespace = namespace
        self.policy = handler.options.retry or policy
        self.limit = handler.options.timeout or limit
        self.clock = publisher.clock
        self._codecs: dict[str, Codec] = {}

    async def outcome(self, delivery: Delivery) -> tuple[Outcome, list[Outgoing]]:
        """Run the handler; returns what becomes of the delivery and what it staged for sending after its commit.

        Raises only `LeaseLost` and `CancelledError`; then nothing was committed, unless the commit itself was cut
        off: then the inbox knows at the next delivery.
        """
        entry = delivery.entry
        if not self.handler.listens_to(entry.subject):
            # The group's claims are wider than this version's filters: a newer or older one of us handles it.
            return Release(delivery, delay=5.0), []
        try:
            message = self.decode(delivery)
        except DecodeError as error:
            reason: Reason = error.reason  # type: ignore[assignment]
            return Dead(delivery, reason, self._failure(error, with_traceback=False)), []
        with _handling(message, self.plan.transactional):
            try:
                return Done(delivery), await self._run(delivery, message)
            except (asyncio.CancelledError, LeaseLost):
                raise
            except Reject as error:
                return Dead(delivery, "rejected", self._failure(error, with_traceback=False)), []
            except RetryLater as error:
                return self._failed(delivery, error, error.after), []
            except Exception as error:
                if self.plan.units is not None and self.plan.units.transient(error):
                    log.warning("the database is away or busy, handing the message back: %s", error)
                    return Release(delivery, delay=1.0), []
                return self._failed(delivery, error, None), []

    def decode(self, delivery: Delivery) -> Message[Any]:
        """The message with its data as the handler's type; raises `DecodeError`."""
        entry = delivery.entry
        id = identity(entry, self.namespace)
        self._check_version(entry)
        data = self._codec(entry.subject).decode(entry.body)
        return Message(entry, data, id=id, group=delivery.group, attempt=delivery.attempts + 1)

    def _check_version(self, entry: Entry) -> None:
        spec = self.publisher.registry.types.get(entry.subject)
        given = entry.headers.get(TYPE)
        if spec is None or given is None:
            return
        name = decode_header(given)
        if name != spec.ce_type and name.startswith(f"{entry.subject}.v"):
            raise DecodeError("unknown_type", f"the message is of type {name!r}, this version knows {spec.ce_type!r}")

    def _codec(self, subject: str) -> Codec:
        codec = self._codecs.get(subject)
        if codec is None:
            codec = self._codecs[subject] = codec_for(self._type_for(subject))
        return codec

    def _type_for(self, subject: str) -> Any:
        known = self.publisher.registry.types.get(subject)
        wanted = next((p.type for p in self.plan.parameters if p.kind in ("event", "message") and p.type), None)
        if wanted is None:
            return next((spec.type for spec in self.handler.classes if spec.subject == subject), Any)
        if wanted is Any:
            return known.type if known else Any
        if typing.get_origin(wanted) in (typing.Union, types.UnionType):
            for member in typing.get_args(wanted):
                spec = spec_of(member)
                if spec is not None and spec.subject == subject:
                    return member
        return wanted

    async def _run(self, delivery: Delivery, message: Message[Any]) -> list[Outgoing]:
        units = self.plan.units
        if units is None:
            async with self._time_limit():
                result = await self._call(message, None)
            await self.publisher.send(self._follow_ups(result, message))
            return []
        async with units.begin(self.plan.connection) as unit:
            async with self._time_limit():
                if not await unit.fresh([InboxKey(message.group, message.subject, message.id)]):
                    log.info("handled before, nothing done")
                    return []
                result = await self._call(message, unit)
            staged = self._follow_ups(result, message)
            await unit.stage(staged)
            if self.clock.monotonic() >= delivery.deadline:
                raise LeaseLost
            await unit.commit()
            return staged

    @asynccontextmanager
    async def _time_limit(self) -> AsyncIterator[None]:
        scope = None
        try:
            async with timeout(self.clock, self.limit) as scope:
                yield
        except TimeoutError:
            if scope is not None and scope.expired():
                raise _TimeUp(f"the handler was still running after {self.limit:g} s and was cancelled") from None
            raise

    async def _call(self, message: Message[Any], unit: Unit | None) -> Any:
        async with AsyncExitStack() as stack:
            arguments: dict[str, Any] = {}
            for parameter in self.plan.parameters:
                if parameter.kind == "event":
                    arguments[parameter.name] = message.data
                elif parameter.kind == "message":
                    arguments[parameter.name] = message
                elif parameter.kind == "connection":
                    arguments[parameter.name] = unit.connection if unit else None
                else:
                    provider = self.publisher.registry.providers[parameter.type]
                    arguments[parameter.name] = await provided(provider, stack)
            return await call(self.handler.function, arguments, self.plan.is_async, unit)

    def _follow_ups(self, result: Any, message: Message[Any]) -> list[Outgoing]:
        if result is None:
            return []
        events = result if isinstance(result, list | tuple) else [result]
        for event in events:
            if spec_of(type(event)) is None:
                raise TypeError(
                    f"{self.handler.name} returned {type(event).__name__}: "
                    "a handler returns None, an event or a list of events"
                )
        return [
            self.publisher.compose(event, id=follow_up_id(message, index), cause=message)
            for index, event in enumerate(events)
        ]

    def _failed(self, delivery: Delivery, error: Exception, after: float | None) -> Outcome:
        failed = delivery.attempts + 1
        policy = self.policy.applied_to(error)
        delay = policy.delay(failed)
        failure = self._failure(error)
        if delay is None:
            log.error(
                "attempt %d of %d failed, dead letter: %s", failed, policy.attempts, failure.message, exc_info=error
            )
            return Dead(delivery, "timeout" if isinstance(error, _TimeUp) else "handler_error", failure)
        if after is not None:
            delay = after
        log.warning("attempt %d of %d failed, again in %.1f s: %s", failed, policy.attempts, delay, _line(error))
        return RetryAfter(delivery, delay, failure)

    def _failure(self, error: Exception, *, with_traceback: bool = True) -> Failure:
        text = "".join(traceback.format_exception(error)) if with_traceback else ""
        return Failure(
            error="TimeoutError" if isinstance(error, _TimeUp) else type(error).__qualname__,
            message=str(error)[:2000],
            traceback=text[-_MOST_TRACEBACK:],
            handler=self.handler.name,
            host=_HOST,
            version=__version__,
        )


class _TimeUp(Exception):
    """The handler's time limit, told apart from a `TimeoutError` of the handler's own."""


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


@contextmanager
def _handling(message: Message[Any], transactional: bool) -> typing.Iterator[None]:
    one, other = current_message.set(message), in_transaction.set(transactional)
    try:
        yield
    finally:
        in_transaction.reset(other)
        current_message.reset(one)


async def provided(provider: Provider, stack: AsyncExitStack) -> Any:
    """A value of a provider; generators live until the stack is left, which is when the message is done."""
    made = provider()
    if inspect.isasyncgen(made):
        return await stack.enter_async_context(asynccontextmanager(lambda: made)())
    if inspect.isgenerator(made):
        return stack.enter_context(contextmanager(lambda: made)())
    if inspect.isawaitable(made):
        return await made
    return made


async def call(function: Callable[..., Any], arguments: dict[str, Any], is_async: bool, unit: Unit | None) -> Any:
    """Call a handler: a coroutine function here, a plain function in a thread."""
    if is_async:
        return await function(**arguments)
    context = contextvars.copy_context()
    if unit is not None:
        return await unit.run(lambda: context.run(function, **arguments))
    running = asyncio.ensure_future(asyncio.to_thread(function, **arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if not running.done():
            log.error("a thread cannot be stopped: %s goes on in the background", function.__qualname__)
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise
