"""The verdict: what was acknowledged against what is there. A pure function of the truth.

Lost and doubled are counted by operation and stage; a second copy in the log is a double, whatever the inbox made of
it. Everything else that must not be (phantoms, changed bytes, wrong dead letters, leftovers) fails the run as well and
is told in words.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .events import ATTEMPTS
from .truth import Dead, Operation, Truth

Fates: TypeAlias = set[tuple[str, str]]
"""Stage and operation."""
PLACED, APPLIED = "events.soak.placed", "events.soak.applied"
EXPECTED = {"poison": ("handler_error", ATTEMPTS), "invalid": ("invalid", 0)}
"""Kinds that must die in `apply`: for which reason, after how many attempts."""


@dataclass(frozen=True)
class Verdict:
    acknowledged: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    reordered: tuple[str, ...]
    other: tuple[str, ...]
    ordered: int
    """Effects in ordered groups: what `reordered` is out of."""
    recovered: int
    """Never acknowledged and stored all the same, as a killed publisher leaves it: neither lost nor wrong."""
    missing: tuple[str, ...] = field(default=())
    """What the run lacks to say anything."""

    @property
    def word(self) -> Literal["pass", "fail", "unknown"]:
        if self.lost or self.doubled or self.reordered or self.other:
            return "fail"
        return "unknown" if self.missing else "pass"

    def line(self, kills: int) -> str:
        return (
            f"{kills:,} kills, {self.acknowledged:,} acknowledged, {len(self.lost):,} lost, {len(self.doubled):,} "
            f"doubled, {len(self.reordered):,} reordered: {self.word}"
        )


def check(truth: Truth, missing: tuple[str, ...] = ()) -> Verdict:
    """Judge; `missing` is what the run itself lacks."""
    attempted = {operation.op: operation for operation in truth.operations}
    acknowledged = {op for op, operation in attempted.items() if operation.acknowledged}
    done = {(effect.stage, effect.op) for effect in truth.effects}
    dead = {(letter.group, letter.op) for letter in truth.dead}
    ordered = [effect for effect in truth.effects if effect.stage == "ordered"]
    return Verdict(
        acknowledged=len(acknowledged),
        lost=tuple(_lost(truth, acknowledged, done, dead)),
        doubled=tuple(_doubled(truth, done, dead)),
        reordered=tuple(_reordered(truth)),
        other=(
            *_phantoms(truth, attempted),
            *_bytes(truth, attempted),
            *_deaths(truth, attempted),
            *truth.leftovers,
        ),
        ordered=len(ordered),
        recovered=len({op for _, op in done | dead} & attempted.keys() - acknowledged),
        missing=missing,
    )


def _lost(
    truth: Truth, acknowledged: set[str], done: set[tuple[str, str]], dead: set[tuple[str, str]]
) -> Iterator[str]:
    in_log = {(message.subject, message.op) for message in truth.log}
    ended = done | dead
    for op in sorted(acknowledged):
        if (PLACED, op) not in in_log:
            yield f"{op}: acknowledged and not in the log"
        for stage in truth.stages:
            if stage != "follow" and (stage, op) not in ended:
                yield f"{op}: acknowledged, neither done nor dead in {stage}"
    # What follows from an effect counts for those that were never acknowledged, too: the effect is there.
    for op in sorted({op for stage, op in done if stage == "apply"}):
        if (APPLIED, op) not in in_log:
            yield f"{op}: its effect is there, what follows from it is not in the log"
        if ("follow", op) not in ended:
            yield f"{op}: its effect is there, the one that follows is neither done nor dead"


def _doubled(truth: Truth, done: Fates, dead: Fates) -> Iterator[str]:
    for (stage, op), count in Counter((effect.stage, effect.op) for effect in truth.effects).items():
        if count > 1:
            yield f"{op}: {count} effects in {stage}"
    for (subject, op), count in Counter((message.subject, message.op) for message in truth.log).items():
        if count > 1:
            yield f"{op}: {count} copies in the log on {subject}"
    for (group, op), count in Counter((letter.group, letter.op) for letter in truth.dead).items():
        if count > 1:
            yield f"{op}: {count} dead letters of {group}"
    for stage, op in sorted(done & dead):
        yield f"{op}: both done and dead in {stage}"


def _reordered(truth: Truth) -> Iterator[str]:
    last: dict[str, int] = defaultdict(int)
    for effect in truth.effects:
        if effect.stage == "ordered":
            if effect.number < last[effect.key]:
                yield f"{effect.op}: number {effect.number} of its key came after {last[effect.key]}"
            last[effect.key] = max(last[effect.key], effect.number)


def _phantoms(truth: Truth, attempted: dict[str, Operation]) -> Iterator[str]:
    seen = {effect.op for effect in truth.effects} | {letter.op for letter in truth.dead}
    for op in sorted((seen | {message.op for message in truth.log}) - attempted.keys()):
        yield f"phantom: {op!r} was never published"
    effects = {effect.op for effect in truth.effects if effect.stage == "apply"}
    for op in sorted({message.op for message in truth.log if message.subject == APPLIED} - effects):
        yield f"phantom: {op} has what follows from an effect that is not there"


def _bytes(truth: Truth, attempted: dict[str, Operation]) -> Iterator[str]:
    headers = {(message.subject, message.op): message.headers for message in truth.log}
    for message in truth.log:
        if message.subject == PLACED and message.op in attempted and message.sha != attempted[message.op].sha:
            yield f"{message.op}: other bytes in the log than were published"
    for letter in truth.dead:
        sent = attempted.get(letter.op)
        if letter.group == "follow" or sent is None:
            continue
        if letter.sha != sent.sha:
            yield f"{letter.op}: other bytes in its dead letter than were published"
        original = _carried(headers.get((PLACED, letter.op), {}))
        if _carried(letter.headers) != original:
            yield f"{letter.op}: other headers in its dead letter than were published"


def _carried(headers: object) -> dict[str, str]:
    assert hasattr(headers, "items")
    return {name: value for name, value in headers.items() if not name.startswith(("Nats-", "Tidings-"))}


def _deaths(truth: Truth, attempted: dict[str, Operation]) -> Iterator[str]:
    for letter in truth.dead:
        operation = attempted.get(letter.op)
        if operation is not None and not _deserved(letter, operation):
            said = f"{letter.reason} after {letter.attempts} attempts"
            yield f"{letter.op}: a {operation.kind} operation died in {letter.group}: {said}"


def _deserved(letter: Dead, operation: Operation) -> bool:
    if letter.group == "ordered":
        return operation.kind == "invalid" and (letter.reason, letter.attempts) == EXPECTED["invalid"]
    return letter.group == "apply" and EXPECTED.get(operation.kind) == (letter.reason, letter.attempts)
