"""`tail`: what is stored, as it is stored, and what is said on live channels."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, Final

import click
import msgspec

from ..clock import SystemClock
from ..engine import Engine, Entry, Lagged, Signal
from ..errors import ConfigError, EngineUnavailable
from ..message import identity
from ..retention import position_at
from ..settings import duration
from ..subjects import check_filter, covers, overlap
from . import options, output
from .session import namespace, own, roots, run, session

_PAGE: Final = 200
_WAIT: Final = 30.0


class Sight(msgspec.Struct, frozen=True):
    """One line of tail."""

    subject: str
    time: float
    headers: dict[str, str]
    body: bytes
    position: int = 0
    """0 for what was said live."""


@click.command()
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
@click.option(
    "--since", metavar="WHEN", help="A position in the log, a time, or -5m for five minutes ago. [from now on]"
)
@click.option("--count", "-n", type=click.IntRange(1), help="Stop after so many.")
@click.option("--live", is_flag=True, help="Live channels only, also where the filter covers stored subjects.")
@click.option("--no-follow", is_flag=True, help="Print what is stored (from --since, else all of it) and stop.")
@options.as_json
@options.common
def tail(
    filters: tuple[str, ...], since: str | None, count: int | None, live: bool, no_follow: bool, as_json: bool
) -> None:
    """Print events as they are stored, and what is said on live channels.

    A FILTER is a subject with * for one word and > for the rest; those below events. follow the log, others listen
    to live channels. Nothing changes for any group. With --json one object a line.

    \b
    tidings tail                          all events from now on
    tidings tail 'events.todo.>' --since -5m
    tidings tail channel21
    """
    chosen = [check_filter(filter) for filter in filters]
    if live and not chosen:
        raise click.UsageError("--live needs the channels to listen to: tidings tail --live 'prices.*'")
    start = since if since is not None or not no_follow else "1"
    run(_tail(chosen, live, start, _Printer(count, as_json), follow=not no_follow))


def split(filters: Sequence[str], live: bool, roots: Sequence[str]) -> tuple[list[str], list[str]]:
    """The filters for the log and those for live channels; one that covers both is for both."""
    stored = [] if live else [f for f in filters if any(overlap(root, f) for root in roots)]
    channels = [f for f in filters if live or not any(covers(root, f) for root in roots)]
    return stored, channels


class _Enough(Exception):
    """As many as were asked for have been printed."""


class _Printer:
    def __init__(self, count: int | None, as_json: bool) -> None:
        self._left = count
        self._as_json = as_json

    def show(self, sight: Sight) -> None:
        if self._as_json:
            click.echo(msgspec.json.encode(_fields(sight)).decode())
        else:
            place = f"{sight.position:>6}" if sight.position else "  live"
            text = sight.body.decode("utf-8", "replace")
            line = f"{_clock(sight.time)} {place} {sight.subject}  {text}"
            output.put(output.fit(line.replace("\n", " ")))
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise _Enough


async def _tail(filters: Sequence[str], live: bool, since: str | None, printer: _Printer, *, follow: bool) -> None:
    expected, _ = split(filters, live, options.settings().roots)
    listens_only = bool(filters) and not expected
    async with session(make=listens_only and follow and own()) as engine, AsyncExitStack() as stack:
        there = roots(engine)
        stored, heard = split(filters or there, live, there)
        if not follow and not stored:
            raise click.UsageError(f"live channels are not stored: leave out --no-follow to hear {' '.join(heard)}")
        channels = heard if follow else []
        try:
            async with asyncio.TaskGroup() as tasks:
                if channels:
                    signals = await stack.enter_async_context(engine.listen(channels))
                    tasks.create_task(_hear(signals, printer))
                if stored:
                    after = await _position(engine, since)
                    tasks.create_task(_follow_log(engine, stored, after, printer, follow))
                if follow:
                    output.say(f"following {' '.join(dict.fromkeys((*stored, *channels)))} (Ctrl-C ends)")
        except* _Enough:
            pass


async def _follow_log(engine: Engine, filters: Sequence[str], after: int, printer: _Printer, follow: bool) -> None:
    while True:
        try:
            page = await engine.read(filters, after, _PAGE, _WAIT if follow else 0.0)
        except EngineUnavailable as error:
            if not follow:
                raise
            output.say(f"waiting for the engine: {error}")
            await asyncio.sleep(1.0)
            continue
        for entry in page:
            after = entry.position
            printer.show(Sight(entry.subject, entry.time, dict(entry.headers), entry.body, entry.position))
        if not page and not follow:
            return


async def _hear(signals: AsyncIterator[Signal | Lagged], printer: _Printer) -> None:
    clock = SystemClock()
    async for signal in signals:
        if isinstance(signal, Lagged):
            output.say(missed(signal))
            continue
        # Where the filter covers everything, the engine's own talk is not meant.
        if not signal.channel.startswith(("_", "$")):
            printer.show(Sight(signal.channel, clock.time(), dict(signal.headers), signal.body))


def missed(lagged: Lagged) -> str:
    """What is missing, for people."""
    if lagged.missed is None:
        return "connected again: what was said meanwhile is missing"
    return f"{lagged.missed} missing: they came faster than they were taken"


async def _position(engine: Engine, since: str | None) -> int:
    """The position after which to begin."""
    stats = await engine.stats()
    if since is None:
        return stats.last
    if since.isdecimal():
        return max(0, int(since) - 1)
    return await position_at(engine, moment(since, SystemClock().time()))


def moment(text: str, now: float) -> float:
    """Seconds since 1970 of `-5m`, `5m` (both: ago) or an ISO time. Raises `ConfigError`."""
    if re.fullmatch(r"-?[\d.]+(ms|s|m|h|d)", text):
        return now - duration(text.removeprefix("-"))
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).astimezone().timestamp()
    raise ConfigError(f"--since {text!r}: write a position (17), a duration ago (-5m) or a time (2030-01-31T12:00)")


async def entries(engine: Engine, filters: Sequence[str], after: int = 0) -> AsyncIterator[Entry]:
    """All stored entries behind a position."""
    while page := await engine.read(filters, after, 1000):
        for entry in page:
            yield entry
        after = page[-1].position


def _fields(sight: Sight) -> dict[str, Any]:
    place: dict[str, Any] = {"live": True}
    if sight.position:
        entry = Entry(sight.position, sight.subject, sight.time, sight.headers, sight.body)
        place = {"position": sight.position, "id": identity(entry, namespace())}
    return {
        **place,
        "subject": sight.subject,
        "time": output.iso(sight.time),
        "headers": sight.headers,
        **output.body_fields(sight.body),
    }


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S.%f")[:-3]
