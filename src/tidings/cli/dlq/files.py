"""`dlq export`, `import`: dead letters as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, TextIO

import click

from ... import deadletters
from ...deadletters import Restored, Selection
from ...engine import DeadLetter
from ...errors import InvalidMessage
from .. import options, output
from ..root import Partly
from ..session import run, session
from .choice import Choice, choosing

_PAGE = 200


@click.command()
@choosing
@options.common
def export(**given: Any) -> None:
    """Print dead letters as JSON lines, whole and byte for byte; all, if nothing says which.

    \b
    tidings dlq export > letters.jsonl
    """
    choice = Choice(**given)
    run(_export(choice.selection))


async def _export(selection: Selection) -> None:
    async with session() as engine:
        async for page in deadletters.pages(engine, selection):
            for letter in page:
                click.echo(deadletters.to_line(letter))


@click.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@options.as_json
@options.common
def import_(file: TextIO, as_json: bool) -> None:
    """Store dead letters that were exported from this namespace and dropped since; - is stdin.

    Those that are there already stay as they are, so that it may be done twice. One is refused when its position in
    the log is another message, or when its group has the message still to handle; then the exit code is 3.
    """
    whole = run(_import(file))
    if as_json:
        output.put_json({"stored": whole.stored, "there": whole.there, "refused": list(whole.refused)})
    else:
        output.put(f"{whole.stored} stored, {whole.there} there already, {len(whole.refused)} refused")
    if whole.refused:
        for why in whole.refused[:20]:
            output.say(why)
        raise Partly(f"{len(whole.refused)} dead letter(s) were refused")


async def _import(file: TextIO) -> Restored:
    stored, there = 0, 0
    refused: list[str] = []
    lines = _letters(file)
    async with session() as engine:
        while page := list(islice(lines, _PAGE)):
            done = await deadletters.restore(engine, page)
            stored, there = stored + done.stored, there + done.there
            refused += done.refused
    return Restored(stored, there, tuple(refused))


def _letters(file: TextIO) -> Iterator[DeadLetter]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield deadletters.to_letter(line)
        except InvalidMessage as error:
            raise InvalidMessage(f"{file.name}, line {number}: {error}") from error
