"""Savepoints of a shared transaction: what they are called, and what they take back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.orm import Session

from tidings.errors import ConfigError
from tidings.sql.savepoint import Names, Savepoint


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a INT)")
        connection.exec_driver_sql("BEGIN")
        yield connection
    engine.dispose()


def _insert(connection: Connection, number: int) -> None:
    connection.execute(text("INSERT INTO t VALUES (:a)"), {"a": number})


def _numbers(connection: Connection) -> list[int]:
    return list(connection.execute(text("SELECT a FROM t ORDER BY a")).scalars())


def test_the_same_few_names_are_used_again(connection: Connection) -> None:
    """However many savepoints a transaction has, one after another, their names are those of their depth, and each goes
    back to its own place."""
    Names(connection)
    told: set[str] = set()
    event.listen(connection, "before_cursor_execute", lambda *given: told.add(given[2]))
    for number in range(40):
        outer = connection.begin_nested()
        _insert(connection, number)
        inner = connection.begin_nested()
        _insert(connection, 100 + number)
        inner.rollback()
        again = connection.begin_nested()
        _insert(connection, 200 + number)
        again.commit()
        outer.commit()
    assert _numbers(connection) == [*range(40), *range(200, 240)]
    assert len({statement for statement in told if "SAVEPOINT" in statement}) == 6


def test_what_follows_a_rollback_is_taken_back_too(connection: Connection) -> None:
    """A session of a handler has rolled back to the savepoint, and others have written after it: it cannot be kept, and
    what is undone is all of it, and nothing from before it."""
    Names(connection)
    with Session(connection) as session:
        _insert(connection, 1)
        point = Savepoint(session, connection)
        _insert(connection, 2)
        nested = connection.get_nested_transaction()
        assert nested is not None
        nested.rollback()
        _insert(connection, 3)
        other = connection.begin_nested()
        _insert(connection, 4)
        other.rollback()
        with pytest.raises(ConfigError, match="swallowed"):
            point.keep()
        point.undo()
        assert _numbers(connection) == [1]
