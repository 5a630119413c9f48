"""Tidings: asynchronous messaging for Python applications, with a real broker inside.

bus = tidings.Bus("todo")

class NewItem(tidings.Event, subject="events.todo.newitem"):
    item: str

@bus.on(NewItem, group="save")
async def save(new: NewItem) -> None: ...

await bus.publish(NewItem(item="write the docs"))
"""

import importlib
import typing

from .version import __version__

if typing.TYPE_CHECKING:
    from .batch import Batch
    from .bus import Bus
    from .engine import Lagged
    from .errors import (
        BrokerError,
        Closed,
        ConfigError,
        Conflict,
        DatabaseBehind,
        DatabaseError,
        DeadLettered,
        DecodeError,
        EngineError,
        EngineUnavailable,
        InvalidMessage,
        MissingExtra,
        NoNamespace,
        NoResponder,
        NotAllowed,
        PublishInTransaction,
        RemoteError,
        RequestError,
        RequestTimeout,
        StillWorking,
        StoreFull,
        StreamBroken,
        TidingsError,
        TooFewAnswers,
        TooLarge,
        Unconfirmed,
        Unsuitable,
    )
    from .events import Event, Request, event, request
    from .live.gather import Gathered
    from .message import Message
    from .publisher import Receipt
    from .retry import NEVER, Outcome, Reject, RetryLater, RetryPolicy
    from .schedule import Tick
    from .settings import Settings
    from .watching.progress import Progress

__all__ = [
    "NEVER",
    "Batch",
    "BrokerError",
    "Bus",
    "Closed",
    "ConfigError",
    "Conflict",
    "DatabaseBehind",
    "DatabaseError",
    "DeadLettered",
    "DecodeError",
    "EngineError",
    "EngineUnavailable",
    "Event",
    "Gathered",
    "InvalidMessage",
    "Lagged",
    "Message",
    "MissingExtra",
    "NoNamespace",
    "NoResponder",
    "NotAllowed",
    "Outcome",
    "Progress",
    "PublishInTransaction",
    "Receipt",
    "Reject",
    "RemoteError",
    "Request",
    "RequestError",
    "RequestTimeout",
    "RetryLater",
    "RetryPolicy",
    "Settings",
    "StillWorking",
    "StoreFull",
    "StreamBroken",
    "Tick",
    "TidingsError",
    "TooFewAnswers",
    "TooLarge",
    "Unconfirmed",
    "Unsuitable",
    "__version__",
    "event",
    "request",
]

# Each is loaded when it is first asked for: `tidings health` needs none of them, and no program all.
_HOMES = {
    "batch": ("Batch",),
    "bus": ("Bus",),
    "engine": ("Lagged",),
    "events": ("Event", "Request", "event", "request"),
    "live.gather": ("Gathered",),
    "message": ("Message",),
    "publisher": ("Receipt",),
    "retry": ("NEVER", "Outcome", "Reject", "RetryLater", "RetryPolicy"),
    "schedule": ("Tick",),
    "settings": ("Settings",),
    "watching.progress": ("Progress",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


if not typing.TYPE_CHECKING:  # type checkers know the names from above

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'tidings' has no attribute {name!r}")
        home = _HOME_OF.get(name, "errors")
        value = globals()[name] = getattr(importlib.import_module(f".{home}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
