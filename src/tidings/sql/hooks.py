"""What is heard from SQLAlchemy about an engine's connections: a statement comes or has failed, a transaction ended."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, event

from tidings.errors import ConfigError

from . import inplace

log = logging.getLogger("tidings.sql")

T = TypeVar("T")

_HANDLED: Final = "tidings-handled"
_FAILED: Final = "tidings-failed"
_AFTER: Final = "tidings-after-commit"
_BEFORE: Final = "tidings-before-commit"
_COMMENT: Final = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_ENDS: Final = re.compile(
    rf"{_COMMENT}(COMMIT|END|ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b)|BEGIN|START\s+TRANSACTION|ABORT|PREPARE\s+TRANSACTION)\b",
    re.IGNORECASE | re.DOTALL,
)


def watch(engine: Engine) -> None:
    """Listen to the engine; idempotent. Changes nothing for who uses it."""
    listeners: list[tuple[str, Callable[..., Any]]] = [
        ("before_cursor_execute", _coming),
        ("handle_error", _failed),
        ("commit", _committing),
        ("rollback", _rolled_back),
        ("checkin", _returned),
    ]
    if engine.dialect.name == "sqlite":
        listeners.append(("invalidate", _thrown_away))
    for name, listener in listeners:
        if not event.contains(engine, name, listener):
            event.listen(engine, name, listener)


def begun(connection: Connection) -> None:
    """A worker's transaction has begun: what ends it as SQL raises `ConfigError`, until the connection returns to its
    pool; and what was noted about the one before is forgotten."""
    connection.info.pop(_FAILED, None)
    connection.info[_HANDLED] = True


def has_failed(connection: Connection) -> bool:
    """Whether any statement since `begun` has failed, be the error seen by the application or not."""
    return _FAILED in connection.info


def before_commit(
    connection: Connection, callback: Callable[[Connection, list[T]], object], noted: Iterable[T]
) -> None:
    """Call back as the last thing before the COMMIT of the transaction that is open now: once, with the connection and
    all that was noted for this callback. What it raises keeps the transaction from being committed."""
    watch(connection.engine)
    connection.info.setdefault(_BEFORE, {}).setdefault(callback, []).extend(noted)


def after_commit(connection: Connection, callback: Callable[[], object]) -> None:
    """Call back when the connection returns to its pool after the transaction that is open now, if it has not rolled
    back. In whatever thread that happens; the callback must not block, and its errors are logged.

    SQLAlchemy says nothing after the commit of a plain `Connection`, and a session's `after_commit` also comes for
    savepoints and inside an outer transaction. The return to the pool is true for all of them, and a session returns
    its connection with the commit.
    """
    connection.info.setdefault(_AFTER, []).append(callback)


def _coming(connection: Connection, _: Any, statement: str, *__: Any) -> None:
    """Before it is done, not after: what a COMMIT has torn apart nobody can join again."""
    if (found := _ENDS.match(statement)) is not None and _HANDLED in connection.info:
        word = " ".join(found[1].upper().split())
        raise ConfigError(
            f"{word} as SQL inside a handler would tear its writes from the inbox mark and the follow-ups, and was not "
            "done: the worker commits when the handler returns and rolls back when it raises. Use begin_nested() for a "
            "part that may fail, and a session of your own for what must be kept in any case"
        )


def _failed(context: Any) -> None:
    connection = context.connection
    if connection is not None and not connection.closed and not connection.invalidated:
        connection.info[_FAILED] = True


def _committing(connection: Connection) -> None:
    for callback, noted in connection.info.pop(_BEFORE, {}).items():
        callback(connection, noted)


def _rolled_back(connection: Connection) -> None:
    if not connection.closed and not connection.invalidated:
        connection.info.pop(_BEFORE, None)
        connection.info.pop(_AFTER, None)


def _returned(dbapi_connection: Any, record: Any) -> None:
    record.info.pop(_BEFORE, None)
    record.info.pop(_HANDLED, None)
    inplace.switch_off(record.info)
    for callback in record.info.pop(_AFTER, ()):
        try:
            callback()
        except Exception:
            log.exception("after a commit: %r failed", callback)


def _thrown_away(dbapi_connection: Any, record: Any, error: BaseException | None) -> None:
    """SQLite does not close a connection that still has an unfinished statement, as one cancelled in the middle of an
    INSERT … RETURNING: it keeps the write lock until the statement is garbage. So roll back before the close."""
    try:
        dbapi_connection.rollback()
    except Exception as failure:
        log.debug("no rollback on a connection that is thrown away: %s", failure)
