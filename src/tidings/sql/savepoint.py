"""A place in a shared transaction to go back to, so that a failure takes back what came after it and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from tidings.errors import ConfigError

from .trouble import is_transient

_NUMBERED: Final = "sa_savepoint_"


class Savepoint:
    """Set when made. Sessions that handlers use on the connection join it: what one of them rolls back, because its
    flush was refused, is what has been done since."""

    def __init__(self, session: Session, connection: Connection) -> None:
        self._session = session
        self._connection = connection
        self._set()

    def _set(self) -> None:
        self._nested = self._session.begin_nested()
        self._session.connection()  # now, not with the first statement
        point = self._connection.get_nested_transaction()
        assert point is not None
        self._point = point

    def first(self, insert: Callable[[], object]) -> Exception | None:
        """Do this as the first thing since then, which saves a savepoint of its own. Returns what the database has said
        if it refuses; then nothing of it is done."""
        try:
            insert()
        except Exception as error:
            if is_transient(error):
                raise
            self._nested.rollback()
            self._set()
            return error
        return None

    def keep(self) -> None:
        """What was done since then belongs to the transaction. Raises `ConfigError` if a part of it is gone."""
        self._session.flush()
        if not self._point.is_active:
            raise ConfigError(
                "the transaction was rolled back inside the handler, after an error that the handler swallowed: "
                "nothing of it is committed. Use begin_nested() around what may fail"
            )
        self._nested.commit()

    def undo(self) -> None:
        """Take back what was done since then, be it before or after what a handler's session has rolled back."""
        self._session.expunge_all()
        if self._point.is_active:
            self._nested.rollback()
        else:
            self._nested.close()
            self._connection.dialect.do_rollback_to_savepoint(self._connection, self._point._savepoint)


class Names:
    """Savepoints of a connection are called after their depth. SQLAlchemy numbers them, so that a driver that keeps
    prepared statements would prepare each anew, and forget the statements of handlers for it."""

    def __init__(self, connection: Connection) -> None:
        self._set: list[str] = []
        """SQLAlchemy's names of those that the database has, the outermost first."""
        event.listen(connection, "before_cursor_execute", self._renamed, retval=True)

    def _renamed(self, _: Connection, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        words, _space, name = statement.rpartition(" ")
        if not name.startswith(_NUMBERED):
            return statement, parameters
        if words == "SAVEPOINT":
            self._set.append(name)
        elif name not in self._set:
            return statement, parameters
        depth = self._set.index(name)
        # One that was rolled back to is still there.
        del self._set[depth + (words != "RELEASE SAVEPOINT") :]
        return f"{words} tidings_{depth + 1}", parameters
