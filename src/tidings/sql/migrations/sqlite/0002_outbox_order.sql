-- What the engine said about a message that it does not take; later messages with its key do not wait for it.
ALTER TABLE {prefix}outbox ADD COLUMN refused TEXT;

CREATE INDEX {prefix}outbox_key ON {prefix}outbox (partition_key, position) WHERE partition_key IS NOT NULL;
