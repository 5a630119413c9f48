"""The statements on inbox and outbox, as plain functions of a connection inside a transaction."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, TextClause, text

from tidings.clock import Clock, SystemClock
from tidings.engine import Outgoing
from tidings.errors import ConfigError
from tidings.unit import InboxKey

from .dialects import dialect_of

STAGE_LEASE: Final = 10.0  # seconds; the process that stages sends right after its commit
RELAY_LEASE: Final = 30.0  # seconds; time for a relay to send a batch before another one takes it over

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,30}\Z")
_MESSAGE: Final = "position, subject, message_id, headers, body, not_before"

_FRESH: Final = """
INSERT INTO {table}inbox (group_name, subject, message_id, handled_at)
SELECT a, b, c, {now} FROM ({keys}) AS given WHERE true
ON CONFLICT DO NOTHING RETURNING group_name, subject, message_id"""

_STAGE: Final = """
INSERT INTO {table}outbox
    (subject, message_id, partition_key, headers, body, not_before, staged_at, lease_token, leased_until)
VALUES (:subject, :id, :key, :headers, :body, :not_before, {now}, :token, {now} + CAST(:lease AS double precision))
ON CONFLICT DO NOTHING"""

_LEASE: Final = """
WITH picked AS MATERIALIZED (
    SELECT position FROM {table}outbox WHERE leased_until <= {now} ORDER BY position LIMIT :limit {skip_locked}
)
UPDATE {table}outbox SET lease_token = :token, leased_until = {now} + CAST(:lease AS double precision)
WHERE position IN (SELECT position FROM picked) RETURNING {message}"""

_STAGED: Final = """
SELECT {message} FROM {table}outbox
WHERE lease_token = :token AND (subject, message_id) IN (SELECT a, b FROM ({keys}) AS given) ORDER BY position"""

_SENT: Final = """
DELETE FROM {table}outbox
WHERE lease_token = :token AND (subject, message_id) IN (SELECT a, b FROM ({keys}) AS given)"""

_OLDEST: Final = "SELECT {now} - staged_at FROM {table}outbox ORDER BY position LIMIT 1"

_PRUNE: Final = """
DELETE FROM {table}inbox WHERE (group_name, subject, message_id) IN (
    SELECT group_name, subject, message_id FROM {table}inbox
    WHERE handled_at < {now} - CAST(:age AS double precision) ORDER BY handled_at LIMIT :limit {skip_locked}
)"""


class Store:
    """Inbox and outbox of one database. Every method runs inside the caller's transaction.

    A staged or leased row carries the `token` of this store, that is of this process. `mark_sent` touches only rows
    with its own token: a relay that was too slow leaves the row to the one that has taken it over.
    """

    def __init__(self, prefix: str = "tidings_", schema: str | None = None, clock: Clock | None = None) -> None:
        self.prefix, self.schema = checked(prefix, schema)
        self.token = uuid.uuid4().hex
        self._clock = clock or SystemClock()

    def fresh(self, connection: Connection, keys: Sequence[InboxKey]) -> set[InboxKey]:
        """Mark as handled; returns those that were not. Waits for another transaction that marks the same."""
        rows = self._run(connection, _FRESH, keys=_json([(key.group, key.subject, key.id) for key in sorted(keys)]))
        return {InboxKey(row.group_name, row.subject, row.message_id) for row in rows}

    def stage(self, connection: Connection, messages: Sequence[Outgoing]) -> None:
        """Add to the outbox, leased to this process; a message that waits there already is not added again."""
        if messages:
            rows = [{**self._common(), "lease": STAGE_LEASE, **_row(message)} for message in messages]
            connection.execute(self._statement(connection, _STAGE), rows)

    def lease(self, connection: Connection, limit: int) -> list[Outgoing]:
        """Take over messages whose lease has ended, oldest first; passes over rows that another relay is taking."""
        rows = self._run(connection, _LEASE, limit=limit, lease=RELAY_LEASE)
        return [_outgoing(row) for row in sorted(rows, key=lambda row: row.position)]

    def staged(self, connection: Connection, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Those of the messages that are in the outbox and leased to this process, in the order of their staging."""
        return [_outgoing(row) for row in self._run(connection, _STAGED, keys=_identities(messages))]

    def mark_sent(self, connection: Connection, messages: Sequence[Outgoing]) -> None:
        """Delete those that are still leased to this process."""
        connection.execute(self._statement(connection, _SENT), {"keys": _identities(messages), "token": self.token})

    def oldest_unsent(self, connection: Connection) -> float | None:
        """Age in seconds of the message that has been in the outbox for longest, None when it is empty."""
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
        return _statement(template, connection.dialect.name, qualified(self.prefix, self.schema))


def checked(prefix: str, schema: str | None) -> tuple[str, str | None]:
    """Both become part of SQL: only what needs no quoting is let through. Raises `ConfigError`."""
    for name, value in (("prefix", prefix), ("schema", schema)):
        if value is not None and not _NAME.match(value):
            raise ConfigError(f"{name}={value!r}: use up to 31 lower case letters, digits and '_', no digit first")
    return prefix, schema


def qualified(prefix: str, schema: str | None) -> str:
    """What stands before `inbox` and `outbox` in SQL."""
    return f'"{schema}".{prefix}' if schema else prefix


@cache
def _statement(template: str, dialect_name: str, table: str) -> TextClause:
    dialect = dialect_of(dialect_name)
    words = {"table": table, "now": dialect.now, "skip_locked": dialect.skip_locked, "message": _MESSAGE}
    return text(template.format(**words, keys=dialect.keys))


def _json(keys: Sequence[tuple[str, ...]]) -> str:
    return msgspec.json.encode(keys).decode()


def _identities(messages: Sequence[Outgoing]) -> str:
    return _json([(message.subject, message.id) for message in messages])


def _row(message: Outgoing) -> dict[str, Any]:
    return {
        "subject": message.subject,
        "id": message.id,
        "key": message.headers.get("ce-partitionkey"),
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
