"""`dlq`: messages that need a person."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar, get_args

import click
import msgspec

from .. import deadletters
from ..deadletters import Selection
from ..engine import DeadLetter, Engine, Reason
from ..message import decode_header
from . import options, output
from .root import NotFound, Partly
from .session import run, session

F = TypeVar("F", bound=Callable[..., Any])

_FEW = 20


class Order(msgspec.Struct, frozen=True):
    """What is to be done with which dead letters, as it was typed."""

    keys: tuple[str, ...]
    group: str | None
    reason: str | None
    everything: bool
    dry_run: bool
    yes: bool
    as_json: bool

    @property
    def selection(self) -> Selection:
        """Raises a usage error where nothing says which are meant."""
        if not (self.keys or self.group or self.reason or self.everything):
            raise click.UsageError("say which: keys as `tidings dlq ls` shows them, --group, --reason or --all")
        if self.keys and self.everything:
            raise click.UsageError("give keys or --all, not both")
        return Selection(self.keys, self.group, self.reason)


def ordering(function: F) -> F:
    """The options of an `Order`."""
    for option in (
        options.common,
        options.as_json,
        click.option("--yes", "-y", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Only say what would happen."),
        click.option("--all", "everything", is_flag=True, help="All of them."),
        click.option("--reason", type=click.Choice(get_args(Reason)), help="Those that died of this."),
        click.option("--group", "-g", help="Those of one group."),
        click.argument("keys", metavar="[KEY]...", nargs=-1),
    ):
        function = option(function)
    return function


@click.group()
@options.common
def dlq() -> None:
    """Look at dead letters, put them back, drop them.

    A dead letter is a message that a group could not handle: its bytes, headers, error and traceback are kept until a
    person acts. Its key is group/position.
    """


@dlq.command()
@click.option("--group", "-g", help="Of one group.")
@click.option("--reason", type=click.Choice(get_args(Reason)), help="That died of this.")
@click.option("--grouped/--each", default=None, help="By kind, or one by one. [by kind if there are many]")
@options.as_json
@options.common
def ls(group: str | None, reason: str | None, grouped: bool | None, as_json: bool) -> None:
    """List dead letters, with --json one by one."""
    letters = run(_find(Selection(group=group, reason=reason)))
    if as_json:
        output.put_json([fields(letter) for letter in letters])
        return
    if not letters:
        output.say("no dead letters")
        return
    if grouped if grouped is not None else len(letters) > _FEW:
        _show_kinds(letters)
    else:
        _show_each(letters)


def _show_kinds(letters: list[DeadLetter]) -> None:
    output.table(
        ("GROUP", "REASON", "ERROR", "COUNT", "FIRST", "LAST", "FOR EXAMPLE"),
        [
            (k.group, k.reason, k.error, k.count, output.moment(k.first), output.moment(k.last), k.example.key)
            for k in deadletters.kinds(letters)
        ],
    )


def _show_each(letters: list[DeadLetter]) -> None:
    output.table(
        ("KEY", "SUBJECT", "REASON", "ERROR", "ATTEMPTS", "DIED"),
        [
            (
                letter.key,
                letter.entry.subject,
                letter.reason,
                f"{letter.failure.error}: {letter.failure.message}"[:60],
                letter.attempts,
                output.moment(letter.died),
            )
            for letter in letters
        ],
    )


@dlq.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.option("--body", "only_body", is_flag=True, help="Only the original bytes, unchanged.")
@options.as_json
@options.common
def show(keys: tuple[str, ...], only_body: bool, as_json: bool) -> None:
    """Show dead letters with their traceback and original bytes."""
    letters = run(_find(Selection(keys)))
    if only_body:
        for letter in letters:
            sys.stdout.buffer.write(letter.entry.body)
    elif as_json:
        output.put_json([fields(letter) for letter in letters])
    else:
        for letter in letters:
            _describe(letter)
    found = {letter.key for letter in letters}
    if missing := [key for key in keys if key not in found]:
        raise NotFound(f"there is no dead letter {', '.join(missing)}: `tidings dlq ls` lists them")


def _describe(letter: DeadLetter) -> None:
    entry, failure = letter.entry, letter.failure
    output.put(f"{letter.key}  {letter.reason}: {failure.error}: {failure.message}")
    output.put(f"  subject   {entry.subject}, position {entry.position}, stored {output.moment(entry.time)}")
    output.put(f"  died      {output.moment(letter.died)}, attempts {letter.attempts}")
    if failure.handler:
        output.put(f"  handler   {failure.handler} on {failure.host}, version {failure.version}")
    for name, value in entry.headers.items():
        output.put(f"  header    {name}: {decode_header(value)}")
    # Bytes that are no text are shown as escapes, so that nothing of a stranger's reaches the terminal as it is.
    output.put(f"  body      {entry.body.decode('utf-8', 'backslashreplace')}")
    if failure.traceback:
        output.put(failure.traceback.rstrip())
    output.put("")


@dlq.command()
@ordering
def redrive(**given: Any) -> None:
    """Put dead letters back, each to the one group that failed, with no attempts counted.

    On a terminal asks first, unless keys were given. Exit code 3 when some had gone meanwhile.

    \b
    tidings dlq redrive save/17
    tidings dlq redrive --group save --reason handler_error
    """
    order = Order(**given)
    # Nothing is lost by it: where nobody can be asked it is simply done.
    ask = sys.stdin.isatty() and not order.keys and not order.yes
    run(_redrive(order, ask))


@dlq.command()
@ordering
def drop(**given: Any) -> None:
    """Remove dead letters for good; asks first. Exit code 3 when some had gone meanwhile.

    \b
    tidings dlq drop --group save --reason undecodable --dry-run
    """
    run(_drop(Order(**given)))


async def _find(selection: Selection) -> list[DeadLetter]:
    async with session() as engine:
        return await deadletters.find(engine, selection)


async def _redrive(order: Order, ask: bool) -> None:
    async with session() as engine:
        letters = await _meant(engine, order)
        groups = _groups(letters)
        if order.dry_run:
            return _tell(order, len(letters), 0, f"{len(letters)} would go back to {groups} (dry run)")
        output.confirm(f"Put {len(letters)} message(s) back to {groups}?", yes=not ask)
        with _bar(len(letters)) as told:
            done = await deadletters.move(engine.redrive, letters, told)
    return _tell(order, len(letters), done, f"{done} put back to {groups}")


async def _drop(order: Order) -> None:
    async with session("admin") as engine:
        letters = await _meant(engine, order)
        groups = _groups(letters)
        if order.dry_run:
            return _tell(order, len(letters), 0, f"{len(letters)} of {groups} would be dropped (dry run)")
        output.confirm(f"Drop {len(letters)} message(s) of {groups} for good?", yes=order.yes)
        with _bar(len(letters)) as told:
            done = await deadletters.move(engine.discard, letters, told)
    return _tell(order, len(letters), done, f"{done} dropped")


async def _meant(engine: Engine, order: Order) -> list[DeadLetter]:
    letters = await deadletters.find(engine, order.selection)
    if not letters:
        raise NotFound("no dead letter is meant by that: `tidings dlq ls` lists them")
    return letters


def _groups(letters: list[DeadLetter]) -> str:
    return ", ".join(dict.fromkeys(letter.group for letter in letters))


def _tell(order: Order, selected: int, done: int, text: str) -> None:
    if order.as_json:
        output.put_json({"selected": selected, "done": done})
    else:
        output.put(text)
    if done < selected and not order.dry_run:
        raise Partly(f"{selected - done} of {selected} were no longer there: somebody else acted first")


def _bar(length: int) -> Any:
    """A progress bar for long work, on a terminal only."""
    if length <= 500 or not sys.stderr.isatty():
        return nullcontext(lambda done: None)
    return _Bar(length)


class _Bar:
    def __init__(self, length: int) -> None:
        self._bar = click.progressbar(length=length, file=sys.stderr)
        self._at = 0

    def __enter__(self) -> Callable[[int], None]:
        self._bar.__enter__()
        return self._told

    def __exit__(self, *exit: Any) -> None:
        self._bar.__exit__(*exit)

    def _told(self, done: int) -> None:
        self._bar.update(done - self._at)
        self._at = done


def fields(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter for JSON output."""
    return {
        "key": letter.key,
        "group": letter.group,
        "position": letter.entry.position,
        "subject": letter.entry.subject,
        "stored": output.iso(letter.entry.time),
        "reason": letter.reason,
        "attempts": letter.attempts,
        "died": output.iso(letter.died),
        "failure": msgspec.to_builtins(letter.failure),
        "headers": dict(letter.entry.headers),
        **output.body_fields(letter.entry.body),
    }
