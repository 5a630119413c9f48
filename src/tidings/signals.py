"""What is said and asked live, and stored nowhere: part of seam 1."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import msgspec

Headers: TypeAlias = Mapping[str, str]


ERROR: Final = "tidings-error"
"""Header of a reply that is an error: the error's type."""


class Reply(msgspec.Struct, frozen=True):
    """The answer to a request, as it came."""

    body: bytes
    headers: Headers

    @property
    def error(self) -> str:
        """The type of the error that it carries, or nothing."""
        return self.headers.get(ERROR, "")


Responder: TypeAlias = Callable[[str, bytes, Headers], Awaitable[Reply]]


class Signal(msgspec.Struct, frozen=True):
    """What `listen` yields: something said on a live channel."""

    channel: str
    body: bytes
    headers: Headers


LISTENER_ROOM: Final = 10_000
"""Signals kept for a listener that takes them slowly; beyond that its oldest ones are dropped, and it is told."""


class Lagged(msgspec.Struct, frozen=True):
    """What `listen` yields where something is missing: ask for the state, do not count on having heard everything."""

    missed: int | None
    """Signals dropped because they were taken too slowly; None: the connection was lost for a while, and nobody knows
    how many there were."""
