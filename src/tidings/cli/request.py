"""`request`: one question, one answer."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from ..live.requests import answer
from ..message import ID, new_id
from ..settings import duration
from ..subjects import check_subject
from . import options, output
from .pub import event_body
from .session import run, session


@click.command()
@click.argument("subject")
@click.argument("body", required=False)
@click.option("--timeout", "-t", default="5s", show_default=True, metavar="DURATION", help="How long to wait.")
@options.as_json
@options.common
def request(subject: str, body: str | None, timeout: str, as_json: bool) -> None:
    """Ask SUBJECT and print the answer: JSON, or the words of a text.

    Exit code 5 when nobody answers such questions, or not in time; 1 when the answer is an error.

    \b
    tidings request todo.count
    """
    check_subject(subject)
    value = event_body(sys.stdin.read() if body == "-" else body)
    found = run(_ask(subject, msgspec.json.encode(value), duration(timeout)))
    if as_json or not isinstance(found, str):
        output.put_json(found)
    else:
        output.put(found)


async def _ask(subject: str, body: bytes, wait: float) -> Any:
    async with session() as engine:
        return answer(await engine.request(subject, body, {ID: new_id()}, wait), Any)
