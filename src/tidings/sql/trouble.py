"""Which errors are the database's, so that no message is blamed for them."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tidings.errors import DatabaseBehind, DatabaseError

# SQLSTATEs, and what they say about the server or about who else is using it.
_STATES: Final = {
    "25006",  # read-only: a standby, or the old primary after a failover
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # a lock was not to be had in time
    "57P01",  # shut down by an administrator
    "57P02",  # shut down by a crash
    "57P03",  # starting up or shutting down
    "58030",  # input or output error
}
_CONFLICTS: Final = {"40001", "40P01", "55P03"}
_CLASSES: Final = (
    "08",  # the connection
    "53",  # out of disk, memory or connections
)

# Primary result codes of SQLite.
_CODES: Final = {
    5,  # BUSY
    6,  # LOCKED
    7,  # NOMEM
    8,  # READONLY: the file, or the disk after an error
    10,  # IOERR
    11,  # CORRUPT: every message would fail; they wait until somebody repairs it
    13,  # FULL
    14,  # CANTOPEN
    15,  # PROTOCOL: a race for the lock of the WAL
    26,  # NOTADB
}

_BUSY: Final = {5, 6, 15}

_LOST_IN_TRANSACTION: Final = "8s2b"  # SQLAlchemy's code for using a session whose connection was lost


def is_transient(error: BaseException) -> bool:
    """Whether the database was away, busy or broken. Not so: a constraint, a trigger that raises, wrong SQL."""
    if isinstance(error, DatabaseError):
        return not isinstance(error, DatabaseBehind)
    if isinstance(error, PoolTimeout):
        return True
    if isinstance(error, PendingRollbackError):
        return error.code == _LOST_IN_TRANSACTION
    return _lost(error) or (isinstance(error, DBAPIError) and _by_code(error.orig))


def is_conflict(error: BaseException) -> bool:
    """Whether the same transaction may succeed at once: another one won, or its connection was lost. Not so where there
    was none to begin with."""
    if isinstance(error, DBAPIError) and (_state_of(error.orig) in _CONFLICTS or _sqlite_code(error.orig) in _BUSY):
        return True
    return _lost(error) or (isinstance(error, PendingRollbackError) and error.code == _LOST_IN_TRANSACTION)


def _lost(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, ConnectionError) and _came_through_sqlalchemy(error)


def _state_of(error: Any) -> str | None:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def _by_code(error: Any) -> bool:
    state = _state_of(error)
    if state:
        return state in _STATES or state.startswith(_CLASSES)
    return _sqlite_code(error) in _CODES


def _sqlite_code(error: Any) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _came_through_sqlalchemy(error: BaseException) -> bool:
    """A refused connection may be any service's; only the database's has SQLAlchemy on its way."""
    frame = error.__traceback__
    while frame is not None:
        if str(frame.tb_frame.f_globals.get("__name__", "")).startswith("sqlalchemy."):
            return True
        frame = frame.tb_next
    return False
