"""What a refusal of the server means."""

from __future__ import annotations

from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError

from ...errors import Conflict, EngineError, EngineUnavailable, InvalidMessage, StoreFull
from .address import Address


class Again(EngineUnavailable):
    """The server cannot at the moment; it may in a moment. With `reconnect` perhaps another one answers then."""

    def __init__(self, text: str, *, reconnect: bool = False) -> None:
        super().__init__(text)
        self.reconnect = reconnect


class Gone(EngineUnavailable):
    """The server knows our namespace or our functions no longer."""


_OURS = {
    "TIDINGS_CONFLICT": Conflict,
    "TIDINGS_INVALID": InvalidMessage,
}
_BUSY = ("BUSY", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN", "LOADING", "UNKILLABLE")


def judged(error: ResponseError, address: Address) -> Exception:
    """The error of ours that says the same, for people."""
    text = str(error)
    word, _, words = text.partition(" ")
    if word in _OURS:
        return _OURS[word](words)
    if word == "TIDINGS_GONE" or "Function not found" in text:
        return Gone(f"{address.shown} does not know the namespace any more")
    if isinstance(error, OutOfMemoryError) or word == "OOM":
        return StoreFull(
            f"{address.shown} has used all of its `maxmemory`: start workers for what waits, act on the dead letters, "
            "or raise the limit"
        )
    if isinstance(error, ReadOnlyError) or word == "READONLY":
        return Again(f"{address.shown} is a replica and takes no writes: connect to the primary", reconnect=True)
    if word == "MISCONF":
        return Again(f"{address.shown} cannot write to its disk and takes nothing until it can: {words}")
    if word in _BUSY:
        return Again(f"{address.shown}: {text}")
    if isinstance(error, NoPermissionError) or word == "NOPERM" or "ACL failure" in text:
        return EngineUnavailable(
            f"{address.shown}: the user of this connection may not do this ({text}): "
            "`tidings doctor --permissions` prints what it needs"
        )
    if word == "MOVED":
        return EngineUnavailable(f"{address.shown} is part of a cluster, on which a namespace cannot live yet")
    return EngineError(f"{address.shown} answered: {text}")
