"""Outcomes as the functions in the server take them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ...engine import Dead, Done, Failure, Outcome, Park, Release, RetryAfter

_TRACEBACK: Final = 14 * 1024
"""Characters of a traceback that are kept: its end, which says most."""


def told(outcomes: Sequence[Outcome]) -> list[Any]:
    """The arguments of `settle`. Most messages are just handled: those go together, by their pull."""
    handled: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    others: list[Any] = []
    for outcome in outcomes:
        if isinstance(outcome, Done):
            delivery = outcome.delivery
            handled[delivery.group, delivery.token].append(str(delivery.entry.position))
        else:
            others += _said(outcome)
    runs = [(*pull, positions) for pull, positions in handled.items()]
    return [msgspec.msgpack.encode(runs), *others]


def kept(failure: Failure) -> bytes:
    if len(failure.traceback) > _TRACEBACK:
        failure = msgspec.structs.replace(failure, traceback=f"…\n{failure.traceback[-_TRACEBACK:]}")
    return msgspec.json.encode(failure)


def _said(outcome: RetryAfter | Dead | Release | Park) -> tuple[Any, ...]:
    delivery = outcome.delivery
    place = delivery.group, delivery.entry.position, delivery.token, delivery.crashes
    match outcome:
        case Release(delay=delay):
            return ("release", *place, repr(delay), "", "", 0)
        case Park(behind=behind):
            return ("park", *place, behind, "", "", 0)
        case RetryAfter(delay=delay, failure=failure):
            return ("retry", *place, repr(delay), kept(failure), "", 0)
        case Dead(reason=reason, failure=failure):
            return ("dead", *place, "0", kept(failure), reason, outcome.attempts)
