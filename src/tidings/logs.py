"""Log lines that name the message: id, subject, group and attempt of whatever is being handled, as text or JSON.

Only the standard library's logging; an application's own configuration is left alone unless `configure` is called,
which the command line does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .clock import Clock  # brings asyncio along, which `tidings health` does without

_NONE: dict[str, Any] = {}
_fields: ContextVar[Callable[[], dict[str, Any]]] = ContextVar("tidings_log_fields", default=_NONE.copy)

_SHORT = {"message_id": "id"}
_SHORT_ID: Final = 15
"""An id of more characters that a line has in its text is not shown behind it once more."""
_REMINDER: Final = 60.0


class message_context:  # noqa: N801  (used as a function is; a class costs a third of a generator)
    """Log lines written inside carry these fields, also those of the handler's own loggers."""

    __slots__ = ("_given", "_token")

    def __init__(self, **fields: Any) -> None:
        self._given = fields

    def __enter__(self) -> None:
        around, given = _fields.get(), self._given
        self._token = _fields.set(lambda: {**around(), **given})

    def __exit__(self, *_: object) -> None:
        _fields.reset(self._token)


def name_message(fields: Callable[[], dict[str, Any]]) -> None:
    """From now on log lines of this context carry these fields, which are asked for when a line is written."""
    _fields.set(fields)


class Lasting:
    """A trouble that may last, as a server that is away: told when it begins, once a minute while it lasts, and when it
    is over; never in the name of the message with which it was found out."""

    def __init__(self, log: logging.Logger, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._began: float | None = None
        self._told = 0.0

    def met(self, text: str, *arguments: object) -> None:
        """It is there, or still there."""
        now = self._clock.monotonic()
        if self._began is None:
            self._began = self._told = now
            of_no_message(self._log.warning, text, *arguments)
        elif now - self._told >= _REMINDER:
            self._told = now
            of_no_message(self._log.warning, f"{text} (for %.0f s now)", *arguments, now - self._began)

    def over(self, text: str, *arguments: object) -> None:
        """It is not there, or no more."""
        if self._began is not None:
            took, self._began = self._clock.monotonic() - self._began, None
            of_no_message(self._log.info, f"{text} after %.0f s", *arguments, took)


def command() -> str:
    """How the command line is called in a hint; who runs programs where it is called otherwise sets the variable."""
    return os.environ.get("TIDINGS_COMMAND", "tidings")


def of_no_message(write: Callable[..., object], text: str, *arguments: object) -> None:
    """Write a line that is not about the message that is being handled."""

    def written() -> None:
        _fields.set(_NONE.copy)
        write(text, *arguments)

    copy_context().run(written)


class Fields(logging.Filter):
    """Puts the fields on every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.tidings = _fields.get()()
        return True


class TextFormatter(logging.Formatter):
    """`12:00:01.123 INFO text [id=… subject=… group=… attempt=1]`"""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = getattr(record, "tidings", {})
        text = printable(record.getMessage())
        tail = " ".join(
            f"{_SHORT.get(name, name)}={printable(str(value), '')}"
            for name, value in fields.items()
            if not (name == "message_id" and len(value) > _SHORT_ID and value in text)
        )
        line = f"{stamp} {record.levelname.lower():<7} {text}" + (f" [{tail}]" if tail else "")
        if record.exc_info:
            line += "\n" + printable(record.exc_text or self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "tidings", {}),
        }
        if record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def printable(text: str, kept: str = "\n\t") -> str:
    """Text without terminal control characters, which a message's author could have put in; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else f"\\x{ord(c):02x}" for c in text)


def configure(format: str = "text", level: str = "info") -> None:
    """Log to stderr. For programs that have no logging configuration of their own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Fields())
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
