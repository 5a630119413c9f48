-- Who handles an ordered group: a worker that takes over raises the epoch, and what an earlier one has not committed
-- by then is refused.
CREATE TABLE {prefix}epochs (
    name TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL
);
