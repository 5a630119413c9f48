"""Tidings: asynchronous messaging for Python applications, with a real broker inside.

bus = tidings.Bus("todo")

class NewItem(tidings.Event, subject="events.todo.newitem"):
    item: str

@bus.on(NewItem, group="save")
async def save(new: NewItem) -> None: ...

await bus.publish(NewItem(item="write the docs"))
"""

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
    TidingsError,
    TooLarge,
    Unconfirmed,
)
from .events import Event, Request, event, request
from .message import Message
from .progress import Progress
from .publisher import Receipt
from .retry import NEVER, Outcome, Reject, RetryLater, RetryPolicy
from .schedule import Tick
from .settings import Settings
from .version import __version__

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
    "Tick",
    "TidingsError",
    "TooLarge",
    "Unconfirmed",
    "__version__",
    "event",
    "request",
]
