CREATE TABLE {prefix}migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at REAL NOT NULL -- seconds since 1970, as all times here
);

-- Which messages each group has handled: one row per message, written in the handler's own transaction.
CREATE TABLE {prefix}inbox (
    group_name TEXT NOT NULL,
    subject TEXT NOT NULL,
    message_id TEXT NOT NULL,
    handled_at REAL NOT NULL,
    PRIMARY KEY (group_name, subject, message_id)
) WITHOUT ROWID;

CREATE INDEX {prefix}inbox_handled_at ON {prefix}inbox (handled_at);

-- Messages that leave after the commit; a row is deleted once its message is in the log.
CREATE TABLE {prefix}outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    subject TEXT NOT NULL,
    message_id TEXT NOT NULL,
    partition_key TEXT,
    headers TEXT NOT NULL, -- JSON
    body BLOB NOT NULL,
    not_before REAL,
    staged_at REAL NOT NULL,
    lease_token TEXT NOT NULL, -- which process is sending it
    leased_until REAL NOT NULL, -- when another one may
    UNIQUE (subject, message_id)
);
