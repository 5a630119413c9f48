"""`dlq redrive`, `drop`: moving dead letters."""

from __future__ import annotations

import getpass
import platform
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import click

from ... import deadletters
from ...clock import SystemClock
from ...deadletters import Act, Selection
from ...engine import DeadLetter, Engine
from ...errors import EngineError
from ...rate import per_second
from .. import output
from ..root import NotFound, Partly
from ..session import run, session
from .choice import Order, acting

_LONG = 500
"""Letters from which on there is a progress bar."""


@click.command()
@acting
@click.option("--rate", metavar="N/s", help="So many at most: 2000/s, 100/m.")
def redrive(rate: str | None, **given: Any) -> None:
    """Put dead letters back, each to the one group that failed, with no attempts counted.

    On a terminal asks first, unless keys were given. Killed or cut off half-way, the same command goes on with the
    rest. Exit code 3 when some were not moved: they had gone meanwhile, or the engine went away.

    \b
    tidings dlq redrive save/17
    tidings dlq redrive --error 41f0c2 --dry-run
    tidings dlq redrive --group save --reason handler_error --rate 100/s
    """
    order = Order.of(given)
    # Nothing is lost by it: where nobody can be asked it is simply done.
    ask = sys.stdin.isatty() and not order.choice.keys and not order.yes
    run(_redrive(order, per_second(rate) if rate else None, ask))


@click.command()
@acting
@click.option("--because", metavar="TEXT", default="", help="Why; `tidings dlq log` shows it.")
def drop(because: str, **given: Any) -> None:
    """Remove dead letters for good; asks first. Exit code 3 when some had gone meanwhile.

    \b
    tidings dlq drop --group save --reason undecodable --because "sent by the old importer"
    """
    run(_drop(Order.of(given), because))


async def _redrive(order: Order, rate: float | None, ask: bool) -> None:
    selection = order.choice.deliberate
    async with session() as engine:
        meant = await _meant(engine, selection, order)
        total, groups = meant.total(), ", ".join(meant)
        if not meant:
            return _tell(order, 0, 0, "nothing to put back")
        if order.dry_run:
            return _tell(order, total, 0, f"{total} would go back to {groups} (dry run)")
        output.confirm(f"Put {total} message(s) back to {groups}?", yes=not ask)
        looked, done = await _move(engine, engine.redrive, selection, total, rate)
        await _tell_idle(engine, meant)
    return _tell(order, looked, done, f"{done} put back to {groups}")


async def _drop(order: Order, because: str) -> None:
    selection = order.choice.deliberate
    async with session("admin") as engine:
        meant = await _meant(engine, selection, order)
        total, groups = meant.total(), ", ".join(meant)
        if not meant:
            return _tell(order, 0, 0, "nothing to drop")
        if order.dry_run:
            return _tell(order, total, 0, f"{total} of {groups} would be dropped (dry run)")
        output.confirm(f"Drop {total} message(s) of {groups} for good?", yes=order.yes)
        await note(engine, "drop", order.choice.words, total, because)
        looked, done = await _move(engine, engine.discard, selection, total, None)
    return _tell(order, looked, done, f"{done} dropped")


async def _tell_idle(engine: Engine, groups: Iterable[str]) -> None:
    stats = await engine.stats()
    for group in groups:
        counts = stats.groups.get(group)
        if counts is not None and not counts.pulling and not counts.leased:
            output.say(f"no worker of {group} runs: they wait for one (tidings run MODULE:BUS --group {group})")


async def _meant(engine: Engine, selection: Selection, order: Order) -> Counter[str]:
    """How many, by group: maybe none for who said --all, which is true of nothing as well."""
    meant = await deadletters.count(engine, selection)
    if not meant and not order.choice.everything:
        raise NotFound("no dead letter is meant by that: `tidings dlq ls` lists them")
    return meant


async def _move(
    engine: Engine,
    act: Callable[[Sequence[DeadLetter]], Awaitable[int]],
    selection: Selection,
    total: int,
    rate: float | None,
) -> tuple[int, int]:
    """How many were found, and how many of them were moved. `total`, counted before, is for the progress bar: what
    was moved a moment ago may still have been counted."""
    progress = _Progress(total)
    pages = deadletters.pages(engine, selection)
    try:
        with progress:
            moved = await deadletters.move(act, pages, SystemClock(), rate=rate, told=progress.told)
            return progress.looked, moved
    except EngineError as error:
        if not progress.moved:
            raise
        raise Partly(
            f"{progress.moved} of {total} were done, then: {error}. The same command goes on with the rest"
        ) from error


async def note(engine: Engine, what: str, which: str, count: int, because: str = "") -> None:
    """Write down what is about to be done."""
    who = f"{getpass.getuser()}@{platform.node()}"
    await deadletters.note(engine, Act(SystemClock().time(), who, what, which, count, because))


def _tell(order: Order, selected: int, done: int, text: str) -> None:
    if order.as_json:
        output.put_json({"selected": selected, "done": done})
    else:
        output.put(text)
    if done < selected and not order.dry_run:
        raise Partly(f"{selected - done} of {selected} were no longer there: somebody else acted first")


class _Progress:
    """How far it is; with a bar for long work, on a terminal only."""

    def __init__(self, total: int) -> None:
        self.moved = 0
        self.looked = 0
        shown = total > _LONG and sys.stderr.isatty()
        self._bar: Any = click.progressbar(length=total, file=sys.stderr) if shown else None

    def told(self, looked: int, moved: int) -> None:
        self.moved = moved
        if self._bar:
            self._bar.update(looked - self.looked)
        self.looked = looked

    def __enter__(self) -> None:
        if self._bar:
            self._bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._bar:
            self._bar.__exit__(*error)
