"""`dlq edit`: another body for a dead letter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import click

from ...codec import codec_for
from ...engine import DeadLetter
from ...errors import ConfigError, DecodeError
from ...message import TYPE, decode_header
from .. import options, output
from ..find import load_bus
from ..root import NotFound, Partly
from ..session import run, session
from .act import note
from .look import read


@click.command()
@click.argument("key")
@click.option("--body", type=click.File("rb"), metavar="FILE", help="The new body; - is stdin. [your editor]")
@click.option("--app", metavar="MODULE:BUS", help="The bus that knows the event's type. [TIDINGS_APP]")
@click.option("--unchecked", is_flag=True, help="Take any bytes.")
@click.option("--because", metavar="TEXT", default="", help="Why; `tidings dlq log` shows it.")
@options.common
def edit(key: str, body: BinaryIO | None, app: str | None, unchecked: bool, because: str) -> None:
    """Give a dead letter another body.

    It opens $EDITOR, or takes a file. The new body must be what the application's type for the subject takes; without
    an application it must be JSON. The original stays, and `tidings dlq show` shows both. A redrive delivers the new
    one, with the headers and the id of the old.

    \b
    tidings dlq edit save/17
    tidings dlq edit save/17 --body mended.json --app app.handlers:bus
    """
    found = run(read((key,)))
    if not found:
        raise NotFound(f"there is no dead letter {key}: `tidings dlq ls --flat` lists them")
    letter = found[0]
    new = body.read() if body else _edited(letter)
    if new == letter.entry.body:
        output.say("Nothing was changed.")
        return
    if not unchecked:
        check(letter, new, app or options.settings().app)
    run(_amend(letter, new, because))
    output.put(f"{letter.key} has a new body: `tidings dlq redrive {letter.key}` delivers it")


def check(letter: DeadLetter, body: bytes, app: str | None) -> None:
    """Raise `ConfigError` unless the event's type takes the body."""
    expected = _type_of(letter, app)
    try:
        codec_for(expected).decode(body)
    except DecodeError as error:
        name = "JSON" if expected is Any else getattr(expected, "__name__", str(expected))
        raise ConfigError(f"the new body is no {name}: {error}. Nothing was changed") from error


def _type_of(letter: DeadLetter, app: str | None) -> Any:
    if app is None:
        return Any
    spec = load_bus(app).registry.types.get(letter.entry.subject)
    given = letter.entry.headers.get(TYPE)
    if spec is None:
        output.say(f"{app} has no type for {letter.entry.subject}: the body is only checked to be JSON")
        return Any
    if given is not None and decode_header(given) not in (spec.ce_type, letter.entry.subject):
        output.say(f"the message is of type {decode_header(given)}, {app} has {spec.ce_type}: only checked to be JSON")
        return Any
    return spec.type


def _edited(letter: DeadLetter) -> bytes:
    """What the person's editor makes of the body; a line's end that only the editor added does not count."""
    body = letter.entry.body
    with tempfile.TemporaryDirectory(prefix="tidings-") as directory:
        file = Path(directory, f"{letter.group}-{letter.entry.position}.json")
        file.write_bytes(body)
        click.edit(filename=str(file))
        new = file.read_bytes()
    return new.removesuffix(b"\n") if not body.endswith(b"\n") else new


async def _amend(letter: DeadLetter, body: bytes, because: str) -> None:
    async with session() as engine:
        await note(engine, "edit", letter.key, 1, because)
        if not await engine.amend(letter, body):
            raise Partly(f"{letter.key} was changed, moved or died again meanwhile: look at it, and edit it again")
