CREATE TABLE {schema}{prefix}migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at double precision NOT NULL -- seconds since 1970, as all times here
);

-- Which messages each group has handled: one row per message, written in the handler's own transaction.
CREATE TABLE {schema}{prefix}inbox (
    group_name text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    handled_at double precision NOT NULL,
    PRIMARY KEY (group_name, subject, message_id)
);

CREATE INDEX {prefix}inbox_handled_at ON {schema}{prefix}inbox (handled_at);

-- Messages that leave after the commit; a row is deleted once its message is in the log.
CREATE TABLE {schema}{prefix}outbox (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject text COLLATE "C" NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    partition_key text,
    headers text NOT NULL, -- JSON
    body bytea NOT NULL,
    not_before double precision,
    staged_at double precision NOT NULL,
    lease_token text NOT NULL, -- which process is sending it
    leased_until double precision NOT NULL, -- when another one may
    UNIQUE (subject, message_id)
);
