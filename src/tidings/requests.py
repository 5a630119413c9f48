"""Request and reply: one question, one answer, outside the durable subjects.

The answer is JSON of the request's reply type. A responder's error travels as two headers, its type and its text; the
traceback stays in the responder's log.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any, Final

from .codec import codec_for
from .engine import Engine, Entry, Headers, Reply
from .errors import ConfigError, InvalidMessage, RemoteError
from .events import EventSpec, require_spec
from .handling import being_handled, call, error_name, error_text, is_stopping, provided, time_limit
from .logs import message_context
from .message import (
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
from .publisher import Publisher
from .registry import Handler, Plan
from .subjects import matches

log = logging.getLogger("tidings.requests")

ERROR: Final = "tidings-error"
ERROR_TEXT: Final = "tidings-error-text"


async def ask(engine: Engine, request: Any, *, source: str, wait: float) -> Any:
    """Send a request and return its typed answer; see `Bus.request` for what it raises."""
    spec = require_spec(type(request))
    if not spec.is_request:
        raise InvalidMessage(
            f"{type(request).__name__} is an event: publish it; a request derives from tidings.Request[…]"
        )
    id = new_id()
    headers = {ID: id, TYPE: encode_header(spec.ce_type), SOURCE: encode_header(source), CORRELATION: id}
    if cause := current_message.get():
        headers[CORRELATION] = encode_header(cause.correlation_id)
        headers[CAUSATION] = encode_header(cause.id)
    reply = await engine.request(spec.subject, codec_for(spec.type).encode(request), headers, wait)
    return answer(reply, spec.reply)


def answer(reply: Reply, type: Any) -> Any:
    """The value of a reply; raises `RemoteError` when it carries an error, `DecodeError` when it is of another type."""
    if (error := reply.headers.get(ERROR)) is not None:
        raise RemoteError(decode_header(error), decode_header(reply.headers.get(ERROR_TEXT, "")))
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
        self._publisher = publisher
        self._limit = handler.options.timeout or limit

    async def __call__(self, subject: str, body: bytes, headers: Headers) -> Reply:
        """Answer one request; errors become error replies, so the asker never waits for nothing."""
        clock = self._publisher.clock
        entry = Entry(0, subject, clock.time(), headers, body)
        id = decode_header(headers[ID]) if ID in headers else new_id()
        with message_context(message_id=id, subject=subject):
            try:
                data = codec_for(self.spec.type).decode(body) if body else codec_for(self.spec.type).decode(b"{}")
                message = Message(entry, data, id=id)
                async with time_limit(clock, self._limit):
                    answer = await self._run(message)
                return Reply(answer, {ID: new_id(), CAUSATION: encode_header(id)})
            except asyncio.CancelledError as error:
                if is_stopping():
                    raise
                return _failed(error, "what the handler awaited was cancelled")
            except Exception as error:
                return _failed(error, error_text(error))

    async def _run(self, message: Message[Any]) -> bytes:
        """The answer, written before the commit: one that cannot be written leaves nothing behind."""
        codec = codec_for(self.spec.reply)
        with being_handled(message, self.plan.transactional):
            if self.plan.units is None:
                return codec.encode(await self._call(message, None))
            async with self.plan.units.begin(self.plan.connection) as unit:
                answer = codec.encode(await self._call(message, unit))
                await unit.commit()
                return answer

    async def _call(self, message: Message[Any], unit: Any) -> Any:
        async with AsyncExitStack() as stack:
            arguments: dict[str, Any] = {}
            for parameter in self.plan.parameters:
                if parameter.kind == "connection":
                    arguments[parameter.name] = unit.connection
                elif parameter.kind == "provided":
                    provider = self._publisher.registry.providers[parameter.type]
                    arguments[parameter.name] = await provided(provider, stack)
                else:
                    arguments[parameter.name] = message if parameter.kind == "message" else message.data
            return await call(self.handler.function, arguments, self.plan.is_async, unit)


def _failed(error: BaseException, text: str) -> Reply:
    name = error_name(error)
    log.error("the request failed: %s: %s", name, text, exc_info=error)
    return Reply(b"", {ERROR: encode_header(name), ERROR_TEXT: encode_header(text[:1000])})
