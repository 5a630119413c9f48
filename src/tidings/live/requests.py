"""Request and reply: one question, one answer, outside the durable subjects.

The answer is JSON of the request's reply type. A responder's error travels as two headers, its type and its text; the
traceback stays in the responder's log. A responder that yields answers with a stream (`streaming`); all responders are
asked at once by `gather`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from functools import lru_cache
from typing import Any, Final

from ..clock import Clock
from ..codec import Codec, codec_for
from ..engine import Engine, Entry, Headers, Reply
from ..errors import ConfigError, InvalidMessage, RemoteError
from ..events import EventSpec, spec_of
from ..handlers import Handler
from ..logs import name_message
from ..message import (
    CAUSATION,
    CORRELATION,
    ID,
    SOURCE,
    TYPE,
    Message,
    current_message,
    decode_header,
    encode_header,
    new_id,
)
from ..publisher import Publisher
from ..registry import Plan
from ..signals import ERROR
from ..stepping import within
from ..subjects import matches
from ..unit import Unit, Units
from ..work.calling import argument, call, in_transaction, is_stopping, late, loop_ends, provided, time_limit
from ..work.handling import RERUNS
from ..work.telling import error_name, error_text, line_of
from .streaming import BROKEN_OFF, CHANNEL, COUNT, AskerGone, Stopped, deliver, receive

log = logging.getLogger("tidings.requests")

ERROR_TEXT: Final = "tidings-error-text"


def question(request: Any, source: str) -> tuple[EventSpec, bytes, Headers]:
    """A request as it travels: what it is, its body and headers. Raises `InvalidMessage`."""
    kind: Any = type(request)
    spec, codec, lasting = _asked_as(kind, source)
    id = new_id()
    headers = {ID: id, **lasting, CORRELATION: id}
    if cause := current_message.get():
        headers[CORRELATION] = encode_header(cause.correlation_id)
        headers[CAUSATION] = encode_header(cause.id)
    return spec, codec.encode(request), headers


@lru_cache(maxsize=1024)
def _asked_as(kind: Any, source: str) -> tuple[EventSpec, Codec, Headers]:
    """What is the same for all requests of a class that this application makes."""
    if issubclass(kind, type):
        raise InvalidMessage("a request is asked, not its class: make one, as in bus.request(CountItems())")
    spec = spec_of(kind)
    if spec is None:
        raise InvalidMessage(
            f"{kind.__name__} is no request: ask with an instance of a class that derives from tidings.Request[…], or "
            "is decorated with @tidings.request(…)"
        )
    if not spec.is_request:
        raise InvalidMessage(f"{kind.__name__} is an event: publish it; a request derives from tidings.Request[…]")
    return spec, codec_for(spec.type), {TYPE: encode_header(spec.ce_type), SOURCE: encode_header(source)}


async def ask(engine: Engine, request: Any, *, source: str, wait: float) -> Any:
    """Send a request and return its typed answer; see `Bus.request` for what it raises."""
    if not isinstance(wait, int | float):
        raise InvalidMessage(f"timeout={wait!r}: seconds, as in timeout=5")
    spec, body, headers = question(request, source)
    return answer(await engine.request(spec.subject, body, headers, wait), spec.reply)


async def ask_stream(
    engine: Engine, clock: Clock, request: Any, *, source: str, silence: float
) -> AsyncGenerator[Any, None]:
    """Send a request and yield its typed items; see `Bus.stream`."""
    spec, body, headers = question(request, source)
    async with aclosing(receive(engine, clock, (spec.subject, body, headers), silence)) as replies:
        async for reply in replies:
            if COUNT not in reply.headers:
                yield answer(reply, spec.reply)


def answer(reply: Reply, type: Any) -> Any:
    """The value of a reply; raises `RemoteError` when it carries an error, `DecodeError` when it is of another type."""
    if reply.error:
        raise RemoteError(decode_header(reply.error), decode_header(reply.headers.get(ERROR_TEXT, "")))
    return codec_for(type).decode(reply.body)


class Responding:
    """One reply handler, ready to answer."""

    def __init__(self, handler: Handler, plan: Plan, spec: EventSpec, publisher: Publisher, limit: float) -> None:
        if any(matches(root, spec.subject) for root in publisher.roots):
            raise ConfigError(
                f"{handler.name}: requests on {spec.subject!r} would be stored as events: choose a subject outside "
                f"{', '.join(publisher.roots)}"
            )
        if plan.batched:
            raise ConfigError(f"{handler.name}: a request is answered by itself: take the request, not a Batch")
        self.handler = handler
        self.plan = plan
        self.spec = spec
        self.streams = inspect.isasyncgenfunction(handler.function)
        self._publisher = publisher
        self._limit = handler.limit or limit
        self._question = codec_for(spec.type)
        self._codec = codec_for(spec.reply)
        self._provided = [parameter for parameter in plan.parameters if parameter.kind == "provided"]
        self._at_hand = [parameter for parameter in plan.parameters if parameter.kind != "provided"]
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Break off the streams that run, so that their askers ask somebody else. Single answers are not hurried."""
        self._stopping.set()

    async def __call__(self, subject: str, body: bytes, headers: Headers) -> Reply:
        """Answer one request; errors become error replies, so the asker never waits for nothing. To be called in a
        task or context of its own for each request."""
        given = headers.get(ID)
        id = new_id() if given is None else decode_header(given)
        name_message(lambda: {"message_id": id, "subject": subject})
        try:
            clock = self._publisher.clock
            message = Message(
                Entry(0, subject, clock.time(), headers, body), self._question.decode(body or b"{}"), id=id
            )
            # What the handler publishes is caused by the message. The context is the message's own.
            current_message.set(message)
            in_transaction.set(self.plan.transactional)
            if self.streams:
                return await self._stream(message)
            written = await within(clock, self._limit, self._run(message), self._late)
            return Reply(written, {CAUSATION: encode_header(id)})
        except AskerGone as error:
            log.info("the asker of a stream has gone: %s", error)
            return BROKEN_OFF
        except Stopped as error:
            log.info("%s: a stream was broken off: %s", self.handler.name, error)
            return _told(error, str(error))
        except asyncio.CancelledError as error:
            if is_stopping() and (self._stopping.is_set() or loop_ends()):
                raise
            return _failed(error, "what the handler awaited was cancelled, or its own task")
        except (Exception, SystemExit) as error:
            # An exit let out would end the event loop and leave a process that lives and does nothing.
            return _failed(error, error_text(error))

    def _late(self) -> Exception:
        return late(self._limit)

    async def _run(self, message: Message[Any]) -> bytes:
        units = self.plan.units
        if units is None:
            return self._codec.encode(await self._call(message, None))
        for _ in range(RERUNS):
            try:
                return await self._transact(units, message)
            except Exception as error:
                if not units.conflict(error):
                    raise
                log.info("lost against another transaction, runs again: %s", line_of(error))
            await self._publisher.clock.sleep(random.uniform(0.0, 0.05))  # noqa: S311
        return await self._transact(units, message)

    async def _transact(self, units: Units, message: Message[Any]) -> bytes:
        """The answer, written before the commit: one that cannot be written leaves nothing behind."""
        async with units.begin(self.plan.connection, self.spec.subject) as unit:
            written = self._codec.encode(await self._call(message, unit))
            await unit.commit()
            return written

    async def _stream(self, message: Message[Any]) -> Reply:
        """Deliver what the handler yields; the time limit is for each item."""
        if CHANNEL not in message.headers:
            raise ConfigError(f"{self.spec.subject!r} is answered with a stream: ask with bus.stream(…)")
        units, way = self.plan.units, (self._publisher.engine, self._publisher.clock, message.headers)
        if units is None:
            return await deliver(*way, self._items(message, None), self._stopping)
        async with units.begin(self.plan.connection, self.spec.subject) as unit:
            reply = await deliver(*way, self._items(message, unit), self._stopping)
            await unit.commit()
            return reply

    async def _items(self, message: Message[Any], unit: Unit | None) -> AsyncGenerator[bytes, None]:
        async with AsyncExitStack() as stack:
            generator = self.handler.function(**await self._arguments(message, unit, stack))
            items = await stack.enter_async_context(aclosing(generator))
            while True:
                async with time_limit(self._publisher.clock, self._limit):
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield self._codec.encode(item)

    async def _call(self, message: Message[Any], unit: Unit | None) -> Any:
        if not self._provided and self.plan.is_async:
            at_hand = {parameter.name: argument(parameter, message, unit) for parameter in self._at_hand}
            return await self.handler.function(**at_hand)
        async with AsyncExitStack() as stack:
            arguments = await self._arguments(message, unit, stack)
            return await call(self.handler.function, arguments, self.plan.is_async, unit)

    async def _arguments(self, message: Message[Any], unit: Unit | None, stack: AsyncExitStack) -> dict[str, Any]:
        """What the handler is called with. What providers give lives as long as `stack`."""
        arguments = {parameter.name: argument(parameter, message, unit) for parameter in self._at_hand}
        for parameter in self._provided:
            provider = self._publisher.registry.providers[parameter.type]
            arguments[parameter.name] = await provided(provider, stack)
        return arguments


def _failed(error: BaseException, text: str) -> Reply:
    log.error("the request failed: %s: %s", error_name(error), text, exc_info=error)
    return _told(error, text)


def _told(error: BaseException, text: str) -> Reply:
    """The reply that carries the error."""
    return Reply(b"", {ERROR: encode_header(error_name(error)), ERROR_TEXT: encode_header(text[:1000])})
