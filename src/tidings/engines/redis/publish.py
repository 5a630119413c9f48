"""Put messages into the log: as many as fit into one call, repeated with the same ids until each is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ...engine import Outgoing, Stored
from ...errors import EngineUnavailable, InvalidMessage, StoreFull, Unconfirmed
from ...subjects import matches
from .codec import check, headers_of, packed
from .link import Link
from .namespace import Namespace
from .space import Gauge

_AT_ONCE: Final = 256
_BYTES_AT_ONCE: Final = 2 * 1024 * 1024
_FULL: Final = -1


class Publisher:
    def __init__(self, link: Link, namespace: Namespace, gauge: Gauge) -> None:
        self._link = link
        self._namespace = namespace
        self._gauge = gauge

    async def publish(self, messages: Sequence[Outgoing]) -> list[Stored]:
        """See `Engine.publish`. One call follows the other, so that the log has them in their order."""
        sizes = [self._checked(message) for message in messages]
        self._gauge.admit(sum(sizes))
        until = asyncio.get_running_loop().time() + self._link.timeout
        stored: list[Stored] = []
        for some in _portions(messages, sizes):
            left = until - asyncio.get_running_loop().time()
            try:
                answers = await self._link.call(
                    "store", self._gauge.own_limit, *_arguments(some), doubt=Unconfirmed, wait=max(left, 0.1)
                )
            except EngineUnavailable as error:
                if stored:
                    raise Unconfirmed(f"{len(stored)} of {len(messages)} messages were stored: {error}") from error
                raise
            stored += [self._stored(answer) for answer in answers]
        return stored

    async def delayed(self, limit: int) -> list[Outgoing]:
        """See `Engine.delayed`."""
        found = await self._link.call("delayed", limit)
        return [
            Outgoing(subject.decode(), body, headers_of(headers), id.decode(), float(due))
            for subject, id, due, headers, body in found
        ]

    async def cancel(self, subject: str, id: str) -> bool:
        """See `Engine.cancel`."""
        return bool(await self._link.call("cancel", subject, id, doubt=Unconfirmed))

    def _checked(self, message: Outgoing) -> int:
        size = check(message)
        if not any(matches(root, message.subject) for root in self._namespace.roots):
            raise InvalidMessage(
                f"{message.subject!r} is in none of the namespace's roots ({', '.join(self._namespace.roots)}): "
                "nobody would store it"
            )
        return size

    def _stored(self, answer: list[Any]) -> Stored:
        position, known = answer
        if position == _FULL:
            raise StoreFull(
                f"{int(known):,} of the {self._gauge.own_limit:,} bytes that the namespace may store are used, the "
                "rest is kept for dead letters and retries: start workers for what waits, or raise the limit"
            )
        self._namespace.seen = max(self._namespace.seen, position)
        return Stored(position, duplicate=bool(known))


def _portions(messages: Sequence[Outgoing], sizes: Sequence[int]) -> Iterator[list[Outgoing]]:
    some: list[Outgoing] = []
    weight = 0
    for message, size in zip(messages, sizes, strict=True):
        if some and (len(some) >= _AT_ONCE or weight + size > _BYTES_AT_ONCE):
            yield some
            some, weight = [], 0
        some.append(message)
        weight += size
    if some:
        yield some


def _arguments(messages: Sequence[Outgoing]) -> Iterator[Any]:
    for message in messages:
        yield message.subject
        yield message.id
        yield "" if message.not_before is None else repr(message.not_before)
        yield packed(message.headers)
        yield message.body
