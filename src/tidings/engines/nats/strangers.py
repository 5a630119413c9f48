"""What strangers can make others say: whoever may publish names a reply subject, and nobody asks whether it may.

The server's own answers reach every subject that way, those of Control too. They carry no headers, and each message of
ours there carries some: so they are told apart, passed over, and removed where they stand in the way of a condition.
What this process answers it sends to nobody's subject but an asker's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .connection import Frame

_NOT_ASKERS: Final = ("$", "_t.", "_tw.", "_s.")
OF_A_GET: Final = frozenset(
    f"Nats-{name}"
    for name in ("Stream", "Subject", "Sequence", "Time-Stamp", "Num-Pending", "Last-Sequence", "UpTo-Sequence")
)


def answerable(reply: str) -> bool:
    """Whether a reply subject is an asker's, and neither the server's API nor one of ours."""
    return bool(reply) and not reply.startswith(_NOT_ASKERS)


def is_foreign(frame: Frame) -> bool:
    """Whether a message that was read from Control was not written by us."""
    return OF_A_GET.issuperset(frame.headers or ())


def control_of(subject: str) -> str:
    """The stream that keeps a subject of ours, `_t.{ns}...`."""
    return f"{subject.split('.')[1]}-control"


def places(subjects: Iterable[str]) -> set[tuple[str, int]]:
    """Group and position of subjects of ours; what a stranger made up has none and is left out."""
    found = (subject.split(".")[-2:] for subject in subjects)
    return {(group, int(position)) for group, position in found if position.isascii() and position.isdecimal()}
