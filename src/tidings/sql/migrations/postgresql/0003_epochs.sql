-- Who handles an ordered group: a worker that takes over raises the epoch, and what an earlier one has not committed
-- by then is refused.
CREATE TABLE {schema}{prefix}epochs (
    name text COLLATE "C" PRIMARY KEY,
    epoch bigint NOT NULL
);
