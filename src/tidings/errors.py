"""Every error Tidings raises, in one tree.

    TidingsError
    ├── ConfigError            an option, setting or annotation that cannot work; raised at registration or start
    │   └── MissingExtra       a feature whose optional packages are not installed
    ├── InvalidMessage         refused before the wire; nothing was sent
    │   └── TooLarge
    ├── DecodeError            arrived, but cannot become its type; the worker makes it a dead letter
    ├── PublishInTransaction   `bus.publish` inside a handler whose transaction it would not belong to
    ├── EngineError
    │   ├── EngineUnavailable  nobody answers at the engine's address, or it cannot be used as it is
    │   │   ├── BrokerError    the embedded broker could not be started
    │   │   ├── NotAllowed     it answers, and this user may not do that
    │   │   ├── Unsuitable     it answers, and as it is set up it would lose messages, or cannot keep any
    │   │   └── NoNamespace    it answers, but nothing of this name was ever made there
    │   ├── Unconfirmed        no answer in time: the message may be stored or not; repeat with the same id
    │   ├── StoreFull          the engine refuses to store more
    │   ├── Conflict           somebody else changed it first, or it exists with another shape
    │   └── Closed             used after `close`
    ├── StillWorking           `receipt.wait`: the event has not come in time, and still may
    ├── DeadLettered           `receipt.wait`: every group that could emit the event has given up
    ├── DatabaseError
    │   └── DatabaseBehind     the framework's tables are missing or old
    └── RequestError
        ├── NoResponder        nobody answers this request at the moment
        ├── RequestTimeout     somebody may be working on it, but no answer came in time
        ├── StreamBroken       a streaming reply ended in the middle
        ├── TooFewAnswers      not as many as asked for answered in time; has those that did
        └── RemoteError        the responder raised; carries its error's type and message

Outcomes that a handler raises (`RetryLater`, `Reject`) live in `retry.py` and on another base, so that
`except TidingsError` in a handler never swallows them.
"""

from __future__ import annotations

from typing import Any


class TidingsError(Exception):
    """Base of all errors of this package."""


class ConfigError(TidingsError):
    """An option, a setting or an annotation that cannot work. The text names it and says what to write instead."""


class MissingExtra(ConfigError):
    """A feature was used whose optional packages are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} is not installed. Run: pip install 'tidings[{extra}]'")
        self.extra = extra


class InvalidMessage(TidingsError, ValueError):
    """The message was refused before it reached the wire; nothing was stored."""


class TooLarge(InvalidMessage):
    """Body and headers together are over the limit."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the message has {size:,} bytes with its headers, the limit is {limit:,}: "
            "put large content into a file or object store and publish a reference to it"
        )
        self.size = size
        self.limit = limit


class DecodeError(TidingsError):
    """The bytes of a message cannot become the type its subject stands for.

    `reason` is the dead letter reason: `undecodable` (not JSON), `invalid` (JSON of another shape)
    or `unknown_type` (a version nobody here knows).
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class PublishInTransaction(TidingsError):
    """`bus.publish` was called inside a handler that has a transaction, which it would not belong to."""

    def __init__(self) -> None:
        super().__init__(
            "publish() inside a handler with a transaction would leave even if the transaction rolls back. "
            "Return the event from the handler, or use `await bus.outbox(session).publish(event)`: both leave with "
            "the commit or not at all. To send it at once whatever happens, say `publish(event, now=True)`."
        )


class EngineError(TidingsError):
    """Something between this process and the engine that carries the messages."""


class EngineUnavailable(EngineError):
    """Nobody answers at the engine's address, or what answers cannot be used. The text says which and what to do."""


class BrokerError(EngineUnavailable):
    """The embedded broker could not be found or started. The text quotes its log."""


class NotAllowed(EngineUnavailable):
    """The engine does not let this user do that. The text says what to do."""


class Unsuitable(EngineUnavailable):
    """What answers is not what Tidings can work with, as it is set up or for its version: trying again changes nothing.
    The text says what to set."""


class NoNamespace(EngineUnavailable):
    """Who only looks found nothing to look at: no namespace of this name, or a folder in which no broker has run."""


class Unconfirmed(EngineError):
    """No answer came in time: the messages may be stored or not.

    This is *unknown*, never *failed*. Publishing again with the same id on the same subject is safe: within the
    engine's dedupe window it is stored once. `receipts` holds what was being published, ids included.
    """

    def __init__(self, text: str, receipts: tuple[Any, ...] = ()) -> None:
        super().__init__(text)
        self.receipts = receipts

    @property
    def receipt(self) -> Any:
        """The first (for `publish`: the only) receipt."""
        return self.receipts[0] if self.receipts else None


class StoreFull(EngineError):
    """The engine refuses to store more. Nothing that was acknowledged is lost; publishing works again with space."""


class Conflict(EngineError):
    """A compare-and-set lost: somebody else wrote first, or a thing exists with another shape."""


class Closed(EngineError):
    """The bus or engine was used after `close`, or before `open`."""


class StillWorking(TidingsError, TimeoutError):
    """The event that a receipt waited for has not come in time. The work goes on: wait again, or let the event come by
    push. `receipt` is what was waited with."""

    def __init__(self, text: str, receipt: Any) -> None:
        super().__init__(text)
        self.receipt = receipt


class DeadLettered(TidingsError):
    """Every group that could emit the event has given up on it: a person is needed. `letters` are the dead letters."""

    def __init__(self, text: str, letters: tuple[Any, ...]) -> None:
        super().__init__(text)
        self.letters = letters


class DatabaseError(TidingsError):
    """Something about the framework's own tables in the user's database."""


class DatabaseBehind(DatabaseError):
    """The framework's tables are missing or older than this version needs."""


class RequestError(TidingsError):
    """A request got no good answer."""


class NoResponder(RequestError):
    """Nobody answers requests of this subject at the moment; known at once, without waiting for the timeout."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody answers {subject!r} at the moment: is a process with its @bus.reply handler running?")
        self.subject = subject


class RequestTimeout(RequestError):
    """No answer came in time. A responder may have begun; its late answer reaches nobody."""

    def __init__(self, subject: str, timeout: float) -> None:
        super().__init__(f"no answer to {subject!r} within {timeout:g} s")
        self.subject = subject


class StreamBroken(RequestError):
    """A streaming reply ended in the middle, after `received` items: the responder died, or the way to it was cut. Ask
    again."""

    def __init__(self, subject: str, received: int) -> None:
        super().__init__(
            f"the streaming reply to {subject!r} broke off after {received} item(s): its responder is silent or "
            "has lost its connection; ask again"
        )
        self.subject = subject
        self.received = received


class TooFewAnswers(RequestError):
    """Fewer than `at_least` answered in time. `gathered` has what came."""

    def __init__(self, subject: str, gathered: Any, at_least: int, wait: float) -> None:
        missing = f"; no answer from {', '.join(gathered.missing)}" if gathered.missing else ""
        super().__init__(f"{len(gathered)} of {at_least} answers to {subject!r} within {wait:g} s{missing}")
        self.subject = subject
        self.gathered = gathered


class RemoteError(RequestError):
    """The responder raised. `type` and `message` are those of its error; the traceback stays in its log."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(f"{type}: {message}")
        self.type = type
        self.message = message
