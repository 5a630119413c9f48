"""The statements on inbox, outbox and epochs, as plain functions of a connection inside a transaction."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, TextClause, text
from sqlalchemy.exc import IntegrityError

from tidings import failpoints
from tidings.clock import Clock, SystemClock
from tidings.engine import Outgoing
from tidings.message import KEY
from tidings.unit import InboxKey, Turn

from . import hooks
from .dialects import dialect_of
from .tables import Tables

STAGED_FOR: Final = 1 / 3
"""Part of the lease for which a staged message is left to its process, which sends right after its commit."""
_REFUSED_FOR: Final = 3600.0

_MESSAGE: Final = "position, subject, message_id, headers, body, not_before"

_MARK: Final = """
INSERT INTO {table}inbox (group_name, subject, message_id, handled_at)
SELECT a, b, c, {now} FROM ({marks}) AS marks WHERE true"""

_FRESH: Final = f"""{_MARK}
ON CONFLICT DO NOTHING RETURNING group_name, subject, message_id"""

_FORGET: Final = """
DELETE FROM {table}inbox
WHERE (group_name, subject, message_id) IN (SELECT a, b, c FROM ({marks}) AS marks)"""

_STAGE: Final = """
INSERT INTO {table}outbox
    (subject, message_id, partition_key, headers, body, not_before, staged_at, lease_token, leased_until)
VALUES (:subject, :id, :key, :headers, :body, :not_before, {now}, :token, {now} + CAST(:lease AS double precision))
ON CONFLICT DO NOTHING"""

_LEASE: Final = """
WITH picked AS MATERIALIZED (
    SELECT position, partition_key FROM {table}outbox
    WHERE leased_until <= {now} ORDER BY position LIMIT :limit {skip_locked}
), next AS MATERIALIZED (
    SELECT position FROM picked WHERE partition_key IS NULL OR NOT EXISTS (
        SELECT 1 FROM {table}outbox AS earlier
        WHERE earlier.partition_key = picked.partition_key AND earlier.position < picked.position
            AND earlier.refused IS NULL AND earlier.position NOT IN (SELECT position FROM picked)
    )
)
UPDATE {table}outbox SET lease_token = :token, leased_until = {now} + CAST(:lease AS double precision)
WHERE position IN (SELECT position FROM next) RETURNING {message}"""

_STAGED: Final = """
WITH given AS MATERIALIZED (SELECT a, b FROM ({keys}) AS keys)
SELECT {message}, partition_key IS NOT NULL AND EXISTS (
    SELECT 1 FROM {table}outbox AS earlier
    WHERE earlier.partition_key = staged.partition_key AND earlier.position < staged.position
        AND earlier.refused IS NULL AND (earlier.subject, earlier.message_id) NOT IN (SELECT a, b FROM given)
) AS behind
FROM {table}outbox AS staged
WHERE lease_token = :token AND (subject, message_id) IN (SELECT a, b FROM given) ORDER BY position"""

_LOCK_KEYS: Final = """
SELECT pg_advisory_xact_lock(lock) FROM (
    SELECT CAST(value AS bigint) AS lock FROM json_array_elements_text(CAST(:locks AS json)) ORDER BY 1
) AS sorted"""

_TAKE_POSITIONS: Final = """
UPDATE {table}outbox AS staged SET position = moved.next FROM (
    SELECT position, nextval(pg_get_serial_sequence('{table}outbox', 'position')) AS next FROM (
        SELECT position FROM {table}outbox
        WHERE lease_token = :token AND (subject, message_id) IN (SELECT a, b FROM ({keys}) AS given) ORDER BY position
    ) AS mine
) AS moved WHERE staged.position = moved.position"""

_REFUSED: Final = """
UPDATE {table}outbox SET refused = :why, leased_until = {now} + CAST(:lease AS double precision)
WHERE lease_token = :token AND subject = :subject AND message_id = :id"""

_SENT: Final = """
DELETE FROM {table}outbox
WHERE lease_token = :token AND (subject, message_id) IN (SELECT a, b FROM ({keys}) AS given)"""

_OLDEST: Final = "SELECT {now} - staged_at FROM {table}outbox WHERE refused IS NULL ORDER BY position LIMIT 1"

_PRUNE: Final = """
DELETE FROM {table}inbox WHERE (group_name, subject, message_id) IN (
    SELECT group_name, subject, message_id FROM {table}inbox
    WHERE handled_at < {now} - CAST(:age AS double precision) ORDER BY handled_at LIMIT :limit {skip_locked}
)"""


_ENTER: Final = """
INSERT INTO {table}epochs AS known (name, epoch) VALUES (:name, CAST(:epoch AS bigint))
ON CONFLICT (name) DO UPDATE
SET epoch = CASE WHEN excluded.epoch > known.epoch THEN excluded.epoch ELSE known.epoch END
RETURNING epoch"""

_EPOCH: Final = "SELECT epoch FROM {table}epochs WHERE name = :name {for_share}"


class Store:
    """Inbox, outbox and epochs of one database. Every method runs inside the caller's transaction.

    A staged or leased row carries the `token` of this store, that is of this process. `mark_sent` touches only rows
    with its own token: a relay that was too slow leaves the row to the one that has taken it over after `lease`
    seconds.

    Rows with the same key leave in the order of their commits: their positions rise in it, and none is handed out
    while an earlier one is there. SQLite has one writer at a time. On PostgreSQL a position is taken at the begin of
    the commit, under a lock of the key that ends with it.
    """

    def __init__(self, tables: Tables | None = None, clock: Clock | None = None, lease: float = 30.0) -> None:
        self.tables = tables or Tables()
        self.token = uuid.uuid4().hex
        self.lease_time = lease
        self._clock = clock or SystemClock()

    def fresh(self, connection: Connection, keys: Sequence[InboxKey]) -> set[InboxKey]:
        """Mark as handled; returns those that were not. Waits for another transaction that marks the same."""
        new = set(keys)
        given = _marks(connection, keys)
        if dialect_of(connection.dialect.name).undoes_statements and self._all_new(connection, given):
            return new
        rows = self._run(connection, _FRESH, **given)
        if len(rows) == len(new):
            return new
        return {InboxKey(row.group_name, row.subject, row.message_id) for row in rows}

    def _all_new(self, connection: Connection, given: dict[str, Any]) -> bool:
        """Mark them, unless one of them was handled before: nearly always none was, and to be told of each which were
        not costs more than to mark it."""
        try:
            connection.execute(self._statement(connection, _MARK), {**self._common(), **given})
        except IntegrityError:
            return False
        return True

    def forget(self, connection: Connection, keys: Sequence[InboxKey]) -> None:
        """Take back marks that this transaction has made."""
        connection.execute(self._statement(connection, _FORGET), _marks(connection, keys))

    def stage(self, connection: Connection, messages: Sequence[Outgoing]) -> None:
        """Add to the outbox, leased to this process; a message that waits there already is not added again."""
        if messages:
            lease = STAGED_FOR * self.lease_time
            rows = [{**self._common(), "lease": lease, **_row(message)} for message in messages]
            connection.execute(self._statement(connection, _STAGE), rows)
            keyed = any(KEY in message.headers for message in messages)
            if keyed and not dialect_of(connection.dialect.name).one_writer:
                hooks.before_commit(connection, self._order, messages)
            failpoints.here("outbox.staged")

    def _order(self, connection: Connection, messages: Sequence[Outgoing]) -> None:
        """For all that the transaction has staged, at once: so every transaction takes its locks in the same order."""
        keys = {message.headers[KEY] for message in messages if KEY in message.headers}
        locks = sorted({_lock(self.tables.before, key) for key in keys})
        connection.execute(self._statement(connection, _LOCK_KEYS), {"locks": msgspec.json.encode(locks).decode()})
        parameters = {**_given(connection, _identities(messages)), "token": self.token}
        connection.execute(self._statement(connection, _TAKE_POSITIONS), parameters)

    def enter(self, connection: Connection, name: str, epoch: int) -> int:
        """Begin the epoch, unless a later one has begun; returns the latest. Waits for transactions in `epoch`."""
        return int(self._run(connection, _ENTER, name=name, epoch=epoch)[0].epoch)

    def epoch(self, connection: Connection, name: str) -> int | None:
        """The latest epoch, which stays the latest until this transaction ends."""
        rows = self._run(connection, _EPOCH, name=name)
        return int(rows[0].epoch) if rows else None

    def lease(self, connection: Connection, limit: int) -> list[Outgoing]:
        """Take over messages whose lease has ended, oldest first; passes over rows that another relay is taking."""
        rows = self._run(connection, _LEASE, limit=limit, lease=self.lease_time)
        return [_outgoing(row) for row in sorted(rows, key=lambda row: row.position)]

    def staged(self, connection: Connection, messages: Sequence[Outgoing]) -> Turn:
        """Those of the messages that are in the outbox and leased to this process."""
        rows = self._run(connection, _STAGED, **_given(connection, _identities(messages)))
        return Turn(
            [_outgoing(row) for row in rows if not row.behind],
            [_outgoing(row) for row in rows if row.behind],
        )

    def mark_sent(self, connection: Connection, messages: Sequence[Outgoing]) -> None:
        """Delete those that are still leased to this process."""
        parameters = {**_given(connection, _identities(messages)), "token": self.token}
        connection.execute(self._statement(connection, _SENT), parameters)

    def mark_refused(self, connection: Connection, message: Outgoing, why: str) -> None:
        """Write down what the engine said, and leave it alone for a while."""
        parameters = {"subject": message.subject, "id": message.id, "why": why, "lease": _REFUSED_FOR}
        connection.execute(self._statement(connection, _REFUSED), {**self._common(), **parameters})

    def oldest_unsent(self, connection: Connection) -> float | None:
        """Age in seconds of the message that has waited in the outbox for longest, None when none waits."""
        rows = self._run(connection, _OLDEST)
        return float(rows[0][0]) if rows else None

    def prune(self, connection: Connection, age: float, limit: int) -> int:
        """Forget up to `limit` messages that were handled more than `age` seconds ago; returns how many."""
        parameters = {**self._common(), "age": age, "limit": limit}
        return connection.execute(self._statement(connection, _PRUNE), parameters).rowcount

    def _run(self, connection: Connection, template: str, **parameters: Any) -> Sequence[Row[Any]]:
        return connection.execute(self._statement(connection, template), {**self._common(), **parameters}).all()

    def _common(self) -> dict[str, Any]:
        return {"now": self._clock.time(), "token": self.token}

    def _statement(self, connection: Connection, template: str) -> TextClause:
        return statement(template, connection.dialect.name, self.tables.before)


def _lock(table: str, key: str) -> int:
    """The number of PostgreSQL's advisory lock for a key. Two keys that share one wait for each other, nothing more."""
    digest = blake2b(f"tidings outbox {table} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@cache
def statement(template: str, dialect_name: str, table: str) -> TextClause:
    """SQL with the words of a dialect, and of the tables, filled in."""
    dialect = dialect_of(dialect_name)
    words = {"table": table, "now": dialect.now, "message": _MESSAGE, "keys": dialect.keys, "marks": dialect.marks}
    return text(template.format(**words, skip_locked=dialect.skip_locked, for_share=dialect.for_share))


def _given(connection: Connection, keys: Sequence[Sequence[str]]) -> dict[str, Any]:
    return dialect_of(connection.dialect.name).given(keys)


def _marks(connection: Connection, keys: Sequence[InboxKey]) -> dict[str, Any]:
    return dialect_of(connection.dialect.name).given_marks(sorted(keys))


def _identities(messages: Sequence[Outgoing]) -> list[tuple[str, str]]:
    return [(message.subject, message.id) for message in messages]


def _row(message: Outgoing) -> dict[str, Any]:
    return {
        "subject": message.subject,
        "id": message.id,
        "key": message.headers.get(KEY),
        "headers": msgspec.json.encode(message.headers).decode(),
        "body": message.body,
        "not_before": message.not_before,
    }


def _outgoing(row: Row[Any]) -> Outgoing:
    return Outgoing(
        subject=row.subject,
        body=bytes(row.body),
        headers=msgspec.json.decode(row.headers, type=dict[str, str]),
        id=row.message_id,
        not_before=row.not_before,
    )
