"""What SQLite and PostgreSQL do differently: how a transaction begins, what time it is, a few words of SQL."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, Protocol

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from tidings.errors import ConfigError
from tidings.unit import InboxKey

from . import inplace

_BUSY: Final = 5  # SQLITE_BUSY
_BUSY_TIMEOUT: Final = 5000  # milliseconds; SQLite waits this long for another writer, and `_BEGIN_TRIES` times so
_BEGIN_TRIES: Final = 4
_FULL: Final = 2  # PRAGMA synchronous: a commit is on the disk when it returns
_PREPARED: Final = "tidings-prepared"

IDLE_LIMIT: Final = 300  # seconds


class Dialect(Protocol):
    """One kind of database."""

    name: str
    now: str
    """SQL for seconds since 1970; may use the parameter `:now`, the process's own clock."""
    keys: str
    """SQL for a subquery of the columns a, b, c out of what `given` makes."""
    marks: str
    """SQL for a subquery of the columns a, b, c out of what `given_marks` makes, in its order."""
    skip_locked: str
    for_share: str
    """SQL behind a SELECT whose rows must not change before the transaction ends."""
    undoes_statements: bool
    """Whether a statement that fails is undone by itself, and the transaction goes on."""
    one_writer: bool
    """Whether writers queue for the whole database anyway, so that they had better queue in the process first."""

    def given(self, keys: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The parameters for `keys`: rows of up to three texts."""
        ...

    def given_marks(self, keys: Sequence[InboxKey]) -> dict[str, Any]:
        """The parameters for `marks`."""
        ...

    def begin(self, connection: Connection, name: str) -> None:
        """Make the transaction that SQLAlchemy has just begun one that a handler may have, under a name for those who
        look at the database's sessions."""
        ...

    def in_transaction(self, driver: Any) -> bool:
        """Whether the driver's connection really has a transaction open; asks no server."""
        ...


class SQLite:
    """SQLite from 3.35 on. Its clock is the process's: everybody who uses the file is on this machine."""

    name = "sqlite"
    now = ":now"
    keys = (
        "SELECT json_extract(value, '$[0]') AS a, json_extract(value, '$[1]') AS b, json_extract(value, '$[2]') AS c"
        " FROM json_each(:keys)"
    )
    # What a subject's messages have in common is read once, and not with each of their ids.
    marks = (
        "WITH given AS MATERIALIZED (SELECT json_extract(value, '$[0]') AS a, json_extract(value, '$[1]') AS b,"
        " json_extract(value, '$[2]') AS ids FROM json_each(:keys)) SELECT a, b, value AS c FROM given, json_each(ids)"
    )
    skip_locked = ""
    for_share = ""  # who may write at all keeps everybody else from it
    undoes_statements = True
    one_writer = True

    def given(self, keys: Sequence[Sequence[str]]) -> dict[str, Any]:
        return {"keys": msgspec.json.encode(keys).decode()}

    def given_marks(self, keys: Sequence[InboxKey]) -> dict[str, Any]:
        subjects = groupby(keys, key=attrgetter("group", "subject"))
        return {"keys": msgspec.json.encode([(*of, [key.id for key in several]) for of, several in subjects]).decode()}

    def begin(self, connection: Connection, name: str) -> None:
        """`BEGIN IMMEDIATE`: the write lock from the start, so that what a handler reads is still true when it writes.

        A deferred transaction that reads first and writes later loses with "database is locked" at once, whatever the
        busy timeout says. Only this transaction begins so; the application's own sessions are left as they are.
        """
        self._leave_deferred(connection)
        self._prepare_once(connection)
        inplace.switch_on(connection.connection.driver_connection, connection.info)
        for left in reversed(range(_BEGIN_TRIES)):
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                if left and _is_busy(error):
                    continue
                raise
            return

    def in_transaction(self, driver: Any) -> bool:
        return bool(driver.in_transaction)

    def _leave_deferred(self, connection: Connection) -> None:
        """Applications that follow SQLAlchemy's advice on savepoints, or use `autocommit=False`, have begun already."""
        if self.in_transaction(connection.connection.driver_connection):
            connection.exec_driver_sql("ROLLBACK")

    def _prepare_once(self, connection: Connection) -> None:
        """Per connection of the pool: never less durable or less patient than promised, more if the application says
        so. WAL, in which readers go on while a handler writes, is a property of the file; where it is impossible the
        file stays as it is."""
        if _PREPARED in connection.info:
            return
        if int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one()) < _FULL:
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
        if int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()) < _BUSY_TIMEOUT:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_TIMEOUT}")
        try:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        except OperationalError as error:
            if _is_busy(error):  # this pragma does not wait for others; the next transaction tries again
                return
            raise
        connection.info[_PREPARED] = True


def _is_busy(error: OperationalError) -> bool:
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == _BUSY


class PostgreSQL:
    """PostgreSQL from 13 on. Its clock is the server's, so that a skewed host neither steals nor starves a lease."""

    name = "postgresql"
    now = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
    keys = (
        "SELECT a, b, c FROM unnest(CAST(:keys_a AS text[]), CAST(:keys_b AS text[]), CAST(:keys_c AS text[]))"
        " AS keys(a, b, c)"
    )
    marks = keys
    skip_locked = "FOR UPDATE SKIP LOCKED"
    for_share = "FOR SHARE"
    undoes_statements = False
    one_writer = False

    _begun = text(
        "SELECT set_config('application_name', concat_ws(' ', nullif(current_setting('application_name'), ''),"
        " CAST(:name AS text)), true), CASE WHEN current_setting('idle_in_transaction_session_timeout') = '0'"
        f" THEN set_config('idle_in_transaction_session_timeout', '{IDLE_LIMIT}s', true) END"
    )

    def given(self, keys: Sequence[Sequence[str]]) -> dict[str, Any]:
        """A list for each column: quicker to take apart than JSON, and this is what most of the inbox's time is."""
        return {f"keys_{name}": [key[i] for key in keys if i < len(key)] for i, name in enumerate("abc")}

    def given_marks(self, keys: Sequence[InboxKey]) -> dict[str, Any]:
        return self.given([(key.group, key.subject, key.id) for key in keys])

    def begin(self, connection: Connection, name: str) -> None:
        """The `application_name` is the name, behind the application's own if it has one, until the transaction ends.

        A process that is stopped in the middle keeps the lock on its inbox row; after `IDLE_LIMIT` seconds without
        a statement the server ends such a transaction, unless the application has set a limit of its own."""
        connection.execute(self._begun, {"name": name})

    def in_transaction(self, driver: Any) -> bool:
        if hasattr(driver, "is_in_transaction"):  # asyncpg
            return bool(driver.is_in_transaction())
        info = getattr(driver, "info", None)  # psycopg, psycopg2
        return info is None or int(info.transaction_status) != 0


_DIALECTS: Final[dict[str, Dialect]] = {"sqlite": SQLite(), "postgresql": PostgreSQL()}


def dialect_of(name: str) -> Dialect:
    """The dialect with SQLAlchemy's name; raises `ConfigError` for others."""
    try:
        return _DIALECTS[name]
    except KeyError:
        raise ConfigError(f"Tidings keeps its tables in SQLite or PostgreSQL, not in {name!r}") from None
