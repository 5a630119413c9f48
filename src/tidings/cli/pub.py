"""`pub`: an event into the log, or a word on a live channel."""

from __future__ import annotations

import asyncio
import difflib
import json
import sys
from typing import Any

import click
import msgspec

from .. import claims
from ..clock import SystemClock
from ..engine import Engine
from ..errors import InvalidMessage, Unconfirmed
from ..message import encode_header
from ..publisher import Publisher, Receipt
from ..registry import Registry
from ..settings import duration
from ..subjects import check_subject, matches
from . import options, output
from .root import NOT_FOUND
from .session import own, roots, run, session

_SOURCE = "tidings-cli"
_BATCH = 500


@click.command()
@click.argument("subject")
@click.argument("body", required=False)
@click.option("--count", "-n", type=click.IntRange(1), default=1, show_default=True, help="How many times.")
@click.option("--interval", "-i", default="0s", metavar="DURATION", help="Pause between two: 500ms, 5s, 2m.")
@click.option("--id", "id", help="The message's id: the same id on the same subject is stored once.")
@click.option("--key", help="The ordering key.")
@click.option("--delay", metavar="DURATION", help="Store it now, hand it out then.")
@click.option("--expires", metavar="DURATION", help="From then on nobody handles it: it is a dead letter.")
@options.as_json
@options.common
def pub(subject: str, body: str | None, count: int, interval: str, as_json: bool, **given: str | None) -> None:
    """Publish BODY on SUBJECT; "-" reads it from stdin.

    Below events. it is an event: stored, and handled by every group that wants it. Its body is JSON (without BODY:
    {}); plain words become a JSON text. Every other subject is a live channel: who listens now hears it, any text
    will do, nothing is stored. Exit code 5 if nobody heard any of it.

    \b
    tidings pub events.todo.newitem '{"item": "write the docs"}'
    tidings pub channel21 ping --count 50 --interval 5s
    """
    check_subject(subject)
    wanted = {name: value for name, value in given.items() if value is not None}
    if given["id"] is not None and count > 1:
        raise click.UsageError("one --id is stored once: leave out --count, or the id")
    text = sys.stdin.read() if body == "-" else body
    run(_publish(subject, text, Rhythm(count, duration(interval)), wanted, as_json))


class Rhythm(msgspec.Struct, frozen=True):
    """How many times, and the pause between two in seconds."""

    count: int
    pause: float


async def _publish(subject: str, text: str | None, rhythm: Rhythm, wanted: dict[str, str], as_json: bool) -> None:
    expected = any(matches(root, subject) for root in options.settings().roots)
    value = event_body(text) if expected else None  # a slip is told before anything is started
    async with session(make=expected or (own() and not wanted)) as engine:
        # The namespace decides, its roots may be others than ours; what we took for an event is never just said.
        if expected or any(matches(root, subject) for root in roots(engine)):
            value = value if expected else event_body(text)
            await _store(engine, subject, value, rhythm, wanted, as_json)
        elif wanted:
            raise click.UsageError(f"--{next(iter(wanted))} is for stored events; {subject!r} is a live channel")
        else:
            await _tell(engine, subject, (text or "").encode("utf-8", "surrogateescape"), rhythm, as_json)


def event_body(text: str | None) -> Any:
    """The JSON value of an event's body as typed. Plain words are a JSON text; what begins like an object, an array
    or a text and is none is refused, because it is a slip."""
    if text is None or not text.strip():
        return {}
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip()[0] in '{["':
            raise InvalidMessage(f"the body is not JSON: {error}. It was: {text[:80]!r}") from None
    output.say(f"not JSON: sent as the JSON text {json.dumps(text)}")
    return text


async def _store(
    engine: Engine, subject: str, value: Any, rhythm: Rhythm, wanted: dict[str, str], as_json: bool
) -> None:
    more: dict[str, Any] = {
        name: duration(value) if name in ("delay", "expires") else value for name, value in wanted.items()
    }
    publisher = Publisher(engine, Registry(), source=_SOURCE, roots=roots(engine), clock=SystemClock())
    ledger, _ = await claims.load(engine)
    groups = [group.name for group in ledger.living() if any(matches(claim.filter, subject) for claim in group.claims)]
    done = 0
    while done < rhythm.count:
        size = 1 if rhythm.pause else min(_BATCH, rhythm.count - done)
        messages = [publisher.compose(subject, value, **more) for _ in range(size)]
        try:
            receipts = await publisher.send(messages)
        except Unconfirmed as error:
            ids = " ".join(f"--id {message.id}" for message in messages[:3])
            raise Unconfirmed(f"{error}; publishing again with {ids} stores nothing twice") from error
        for receipt in receipts:
            _show(receipt, groups, as_json)
        if done == 0 and not groups and not ledger.read(subject):
            output.say(_unwanted(ledger, subject))
        done += size
        if rhythm.pause and done < rhythm.count:
            await asyncio.sleep(rhythm.pause)


def _unwanted(ledger: claims.Ledger, subject: str) -> str:
    removed = [
        name
        for name, claimant in ledger.groups.items()
        if any(matches(claim.filter, subject) for claim in claimant.ever)
    ]
    if removed:
        return f"no group wants {subject} any more, and nobody will handle this: {', '.join(removed)} was removed"
    wanted = {claim.filter for group in ledger.living() for claim in group.claims}
    near = difflib.get_close_matches(subject, wanted, 1, 0.8)
    meant = f"Did you mean {near[0]}" if near else "Is the subject right"
    return (
        f"no group wants {subject}: it waits as unclaimed for the first that does (tidings dlq unclaimed). {meant}? "
        "And did a worker with its handler ever run?"
    )


def _show(receipt: Receipt, groups: list[str], as_json: bool) -> None:
    if as_json:
        output.put_json(
            {
                "seq": receipt.position,
                "id": receipt.id,
                "subject": receipt.subject,
                "duplicate": receipt.duplicate,
                "groups": groups,
            }
        )
    elif receipt.duplicate:
        output.put(f"already stored seq {receipt.position}: nothing new")
    elif receipt.position:
        output.put(f"stored seq {receipt.position}")
    else:
        output.put(f"stored until its time, id {receipt.id}")


async def _tell(engine: Engine, channel: str, body: bytes, rhythm: Rhythm, as_json: bool) -> None:
    """Say it; an error at the end if nobody heard any of it, which is more often a slip than meant."""
    unheard = True
    for done in range(rhythm.count):
        if done and rhythm.pause:
            await asyncio.sleep(rhythm.pause)
        heard = await _broadcast(engine, channel, body)
        unheard = unheard and heard is not None and not heard
        if as_json:
            output.put_json({"channel": channel, "heard": heard})
        else:
            output.put(_heard(heard))
    if unheard:
        begins = " or ".join(root.removesuffix(">") for root in roots(engine))
        output.say(f"not stored: it was said on a live channel; what is to be stored begins with {begins}")
        raise click.exceptions.Exit(NOT_FOUND)


async def _broadcast(engine: Engine, channel: str, body: bytes) -> int | bool | None:
    return await engine.broadcast(channel, body, {"ce-source": encode_header(_SOURCE)})


def _heard(heard: int | bool | None) -> str:
    if heard is None:
        return "sent"
    if isinstance(heard, bool):
        return "heard" if heard else "nobody listening"
    return f"{heard} receiver{'s' * (heard != 1)}{': nobody listening' * (not heard)}"
