"""`dlq ls`, `show`, `unclaimed`, `log`: what is there."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import click
import msgspec

from ... import claims, deadletters
from ...deadletters import Act, Kind, Selection
from ...engine import DeadLetter
from ...message import decode_header
from ...order import parked_behind
from ...work.tracebacks import without_libraries
from .. import options, output
from ..root import NotFound
from ..session import run, session
from .choice import Choice, filtering


@click.command()
@filtering
@click.option("--flat", is_flag=True, help="One by one.")
@options.as_json
@options.common
def ls(flat: bool, as_json: bool, **given: Any) -> None:
    """List dead letters: by what they died of, or one by one.

    \b
    tidings dlq ls
    tidings dlq ls --error 41f0c2 --flat
    """
    selection = Choice(**given).selection
    if flat:
        run(_list_each(selection, as_json))
    else:
        _show_kinds(run(_kinds(selection)), as_json)


async def _kinds(selection: Selection) -> list[Kind]:
    async with session() as engine:
        return await deadletters.kinds(deadletters.pages(engine, selection))


def _show_kinds(kinds: list[Kind], as_json: bool) -> None:
    if as_json:
        output.put_json([_kind_fields(kind) for kind in kinds])
    elif not kinds:
        output.say("no dead letters")
    else:
        rows = [
            (
                k.group,
                k.reason,
                k.count,
                output.moment(k.first),
                output.moment(k.last),
                k.fingerprint,
                k.sample.key,
                _short(k.sample),
            )
            for k in kinds
        ]
        output.table(("GROUP", "REASON", "COUNT", "FIRST", "LAST", "ERROR", "SAMPLE", "WHAT IT SAID"), rows)


def _kind_fields(kind: Kind) -> dict[str, Any]:
    return {
        "group": kind.group,
        "reason": kind.reason,
        "error": kind.fingerprint,
        "count": kind.count,
        "first": output.iso(kind.first),
        "last": output.iso(kind.last),
        "sample": fields(kind.sample),
    }


def _short(letter: DeadLetter) -> str:
    return f"{letter.failure.error}: {letter.failure.message}"[:60]


async def _list_each(selection: Selection, as_json: bool) -> None:
    async with session() as engine:
        found = deadletters.pages(engine, selection)
        if as_json:
            await _put_all(found)
            return
        read = [letter async for page in found for letter in page]
        waiting = await parked_behind(engine, read)
    if read:
        rows = [(*_row(letter), waiting.get(letter.key, "")) for letter in read]
        output.table(("KEY", "SUBJECT", "REASON", "ERROR", "ATTEMPTS", "DIED", "BEHIND IT"), rows)
    else:
        output.say("no dead letters")


def _row(letter: DeadLetter) -> tuple[object, ...]:
    died = output.moment(letter.died)
    return (letter.key, letter.entry.subject, letter.reason, _short(letter), letter.attempts, died)


async def _put_all(found: AsyncIterator[list[DeadLetter]]) -> None:
    """A JSON array, written while it is read."""
    before = "["
    async for page in found:
        for letter in page:
            click.echo(f"{before}{json.dumps(fields(letter))}", nl=False)
            before = ",\n"
    click.echo("[]" if before == "[" else "]")


@click.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.option("--body", "only_body", is_flag=True, help="Only the bytes that a redrive delivers.")
@click.option("--original", "only_original", is_flag=True, help="Only the bytes as they were published.")
@click.option("--full", is_flag=True, help="The whole traceback, with the lines of libraries.")
@options.as_json
@options.common
def show(keys: tuple[str, ...], only_body: bool, only_original: bool, full: bool, as_json: bool) -> None:
    """Show dead letters with their bytes, and where in the application's own lines they failed."""
    letters, waiting = run(_with_parked(keys))
    if only_body or only_original:
        for letter in letters:
            sys.stdout.buffer.write(first_body(letter) if only_original else letter.entry.body)
    elif as_json:
        output.put_json([fields(letter) | {"behind": waiting.get(letter.key, 0)} for letter in letters])
    else:
        for letter in letters:
            _describe(letter, waiting.get(letter.key, 0), full)
    found = {letter.key for letter in letters}
    if missing := [key for key in keys if key not in found]:
        raise NotFound(f"there is no dead letter {', '.join(missing)}: `tidings dlq ls --flat` lists them")


async def read(keys: tuple[str, ...]) -> list[DeadLetter]:
    """The dead letters of these keys that are there."""
    async with session() as engine:
        return [letter async for page in deadletters.pages(engine, Selection(keys)) for letter in page]


def first_body(letter: DeadLetter) -> bytes:
    """The body as it was published."""
    return letter.entry.body if letter.original is None else letter.original


async def _with_parked(keys: tuple[str, ...]) -> tuple[list[DeadLetter], dict[str, int]]:
    letters = await read(keys)
    async with session() as engine:
        return letters, await parked_behind(engine, letters)


def _describe(letter: DeadLetter, waiting: int, full: bool) -> None:
    entry, failure = letter.entry, letter.failure
    output.put(f"{letter.key}  {letter.reason}: {failure.error}: {failure.message}")
    output.put(f"  subject   {entry.subject}, position {entry.position}, stored {output.moment(entry.time)}")
    output.put(f"  died      {output.moment(letter.died)}, attempts {letter.attempts}")
    output.put(f"  error     {deadletters.fingerprint(failure)}")
    if waiting:
        output.put(f"  behind it {waiting} message(s) of the same key wait, until it is redriven or dropped")
    if failure.handler:
        output.put(f"  handler   {failure.handler} on {failure.host}, version {failure.version}")
    for name, value in entry.headers.items():
        output.put(f"  header    {name}: {decode_header(value)}")
    # Bytes that are no text are shown as escapes, so that nothing of a stranger's reaches the terminal as it is.
    if letter.original is not None:
        output.put(f"  original  {_text(letter.original)}")
    output.put(f"  {'edited  ' if letter.original is not None else 'body    '}  {_text(entry.body)}")
    if failure.traceback:
        shown = failure.traceback if full else without_libraries(failure.traceback)
        output.put(shown.rstrip())
        if shown != failure.traceback:
            output.put("(without the lines of libraries, which --full shows)")
    output.put("")


def _text(body: bytes) -> str:
    return body.decode("utf-8", "backslashreplace")


def fields(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter for JSON output."""
    return {
        "key": letter.key,
        "group": letter.group,
        "position": letter.entry.position,
        "subject": letter.entry.subject,
        "stored": output.iso(letter.entry.time),
        "reason": letter.reason,
        "error": deadletters.fingerprint(letter.failure),
        "attempts": letter.attempts,
        "died": output.iso(letter.died),
        "failure": msgspec.to_builtins(letter.failure),
        "headers": dict(letter.entry.headers),
        **output.body_fields(letter.entry.body),
        **({} if letter.original is None else {"original": output.body_fields(letter.original)}),
    }


@click.command()
@options.as_json
@options.common
def unclaimed(as_json: bool) -> None:
    """List events that no group has ever wanted.

    They wait for the first group that comes for them (a handler on their subject, `tidings run`), and go when they
    expire (TIDINGS_RETENTION_UNCLAIMED). Each kept subject is a typing error or a handler that was never started.
    """
    found = run(_unclaimed())
    kept = options.settings().retention_unclaimed
    if as_json:
        output.put_json(
            [
                {
                    "subject": u.subject,
                    "count": u.count,
                    "first": u.first,
                    "since": output.iso(u.since),
                    "expires": None if kept is None else output.iso(u.since + kept),
                }
                for u in found
            ]
        )
    elif not found:
        output.say("no unclaimed events")
    else:
        rows = [
            (
                u.subject,
                u.count,
                u.first,
                output.moment(u.since),
                "never" if kept is None else output.moment(u.since + kept),
            )
            for u in found
        ]
        output.table(("SUBJECT", "COUNT", "FIRST", "SINCE", "EXPIRES"), rows)


async def _unclaimed() -> list[claims.Unclaimed]:
    async with session() as engine:
        ledger, _ = await claims.load(engine)
        return sorted(await claims.unclaimed(engine, ledger), key=lambda u: u.subject)


@click.command()
@options.as_json
@options.common
def log(as_json: bool) -> None:
    """List who dropped and edited dead letters, and why: the last hundred times."""
    found = run(_acts())
    if as_json:
        output.put_json([{**msgspec.to_builtins(act), "at": output.iso(act.at)} for act in found])
        return
    rows = [(output.moment(act.at), act.who, act.what, act.count, act.which, act.because) for act in found]
    output.table(("WHEN", "WHO", "WHAT", "COUNT", "WHICH", "BECAUSE"), rows)


async def _acts() -> list[Act]:
    async with session() as engine:
        return await deadletters.acts(engine)
