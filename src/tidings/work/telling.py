"""An error in words: for a line of the log, a dead letter, an answer to a request."""

from __future__ import annotations

from ..engine import Delivery
from .calling import CancelledItself, ExitedItself, TimeUp, WrongReturn

_MOST_TRACEBACK = 8_000

_SHOWN_AS: dict[type[BaseException], str] = {
    TimeUp: "TimeoutError",
    CancelledItself: "CancelledError",
    ExitedItself: "SystemExit",
    WrongReturn: "TypeError",
}


def error_name(error: BaseException) -> str:
    """The error's type, for people."""
    return _SHOWN_AS.get(type(error), type(error).__qualname__)


def error_text(error: BaseException) -> str:
    """What an error says; also of one whose `__str__` fails."""
    try:
        return storable(str(error))
    except Exception as another:
        return f"(its text cannot be shown: {type(another).__name__})"


def storable(text: str) -> str:
    """Text that JSON and databases can hold: no lone surrogates, no NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def line_of(error: BaseException) -> str:
    """The error in one line of a log."""
    return f"{error_name(error)}: {error_text(error)}".splitlines()[0][:300]


def key_of(delivery: Delivery) -> str:
    """What its dead letter is called by the command line."""
    return f"{delivery.group}/{delivery.entry.position}"


def end_of(text: str) -> str:
    """The last lines of a traceback: where it happened is at its end."""
    if len(text) <= _MOST_TRACEBACK:
        return text
    return "…\n" + text[-_MOST_TRACEBACK:].partition("\n")[2]
