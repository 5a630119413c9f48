"""`./test crash-matrix`: every failpoint, many kills each, and a table of what was found."""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from database_servers import Server
from tidings.failpoints import FAILPOINTS

from . import run
from .matrix import CELLS, Found
from .table import sound_in, table

SERVERS = {
    "embedded": "Embedded nats-server with an fsync for each publish",
    "valkey": "valkey-server with `appendfsync always`",
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./test crash-matrix",
        description="Kill a process at every failpoint, let the next one finish, and look at database and log: every "
        "operation once, every event that follows from it once, none missing. Exit status: 0 so it is, 1 not so.",
        epilog="Failpoints: " + ", ".join(FAILPOINTS),
    )
    parser.add_argument("--engine", choices=run.BROKERS, default="embedded", help="what carries the messages")
    parser.add_argument("--kills", type=int, default=1, help="in each cell (default: 1)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only cells whose name has these words")
    parser.add_argument("--lanes", type=int, default=2, help="cells at the same time (default: 2)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: a new one)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="where to write the table in Markdown")
    parser.add_argument("--resume", action="store_true", help="leave out what the table shows as sound already")
    chosen = parser.parse_args(argv)
    if chosen.resume and not (chosen.table and chosen.table.exists()):
        parser.error("--resume goes on with what --table FILE has: there is no such file")
    return chosen


def main(argv: list[str]) -> int:
    chosen = parse(argv)
    done = sound_in(chosen.table.read_text(), chosen.kills) if chosen.resume else []
    before = {found.cell for found in done}
    runs = "in several runs, the last with seed" if before else "seed"
    cells = [cell for cell in CELLS if chosen.only in cell.label and cell not in before]
    seed = random.SystemRandom().randrange(10**9) if chosen.seed is None else chosen.seed
    folder = Path(tempfile.mkdtemp(prefix="tidings-crash-"))
    server = Server(Path(tempfile.mkdtemp(prefix="tidings-pg-")))
    began = time.monotonic()

    def tell(found: Found) -> None:
        """One cell is done; the table is written each time, so that a run that is cut off has not been for nothing."""
        say(f"{found.cell.label}: {found.kills} kills, {'sound' if found.sound else 'NOT SOUND'}")
        for what in (*found.doubled, *found.missing, *found.other)[:20]:
            say(f"  {what}")
        done.append(found)
        done.sort(key=lambda one: CELLS.index(one.cell))
        if chosen.table:
            chosen.table.write_text(page(done, f"{runs} {seed}", chosen.engine), encoding="utf-8")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what it has started
    print(f"seed {seed}, {len(cells)} cells, {chosen.kills} kills each on {chosen.engine}, in {folder}", flush=True)
    try:
        server.create()
        server.start()
        options = {"seed": seed, "lanes": chosen.lanes, "engine": chosen.engine, "tell": tell}
        asyncio.run(run.run(cells, chosen.kills, folder, server, **options))
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(server.folder)
    print(f"{table(done)}\n{sum(one.kills for one in done):,} kills in {time.monotonic() - began:,.0f} s")
    if not all(one.sound for one in done):
        return 1
    shutil.rmtree(folder)
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def page(found: Sequence[Found], runs: str, engine: str) -> str:
    kills, operations = sum(one.kills for one in found), sum(one.operations for one in found)
    return f"""# Crash matrix

A process is killed (SIGKILL of itself) at a named moment, again and again, while messages come in; then another one
finishes what is left, and database and log are read with plain SQL and a plain client of the broker. The tables have
no unique constraints and the payloads have names of their own, so that nothing that happened twice is hidden.

- *doubled*: rows or events that are there more than once;
- *missing*: operations that were acknowledged and have no row, rows whose event is not in the log;
- *other*: events without their row, dead letters, processes that did not end as they should.

- `handler` takes an event, adds a row, flushes for its id and returns an event; messages share a transaction (group
  commit). `each handler` has `commit="each"`, `def handler` is a plain function, `batch handler` takes a `Batch`.
- `route` is a FastAPI route that adds a row and calls `bus.outbox(session).publish(…)`; `def route` is a plain function
  that calls `publish_sync`. Requests that were not answered may have happened or not: row and event, or neither.

{SERVERS[engine]}, SQLite with `synchronous=FULL`, PostgreSQL with asyncpg (plain
functions: psycopg) and `synchronous_commit=on`. The memory engine dies with its process: what a crash means on it is
shown by `a_redelivery_changes_nothing` and the other cases in [guarantees.md](guarantees.md).

{table(found)}

{len(found)} of {len(CELLS)} cells, {kills:,} kills, {operations:,} operations. Made by
`./test crash-matrix --engine {engine} --kills {found[0].kills}`, {runs}, on
{date.today():%Y-%m-%d}, {platform.system()}, Python {platform.python_version()}. `./test` runs the same matrix with one
kill in each cell, and on a Valkey with `appendfsync always` one kill at each failpoint; the whole of that is
`./test crash-matrix --engine valkey`.

| failpoint | what is true there |
|---|---|
""" + "".join(f"| `{name}` | {what} |\n" for name, what in FAILPOINTS.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
