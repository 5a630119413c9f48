"""Subjects and filters: dot-separated names, `*` for one whole token, `>` for the rest.

The grammar is narrower than the engines': printable ASCII without space, so that a subject means the same on every
engine, in every terminal and in every log. User data that becomes part of a subject goes through `token`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from .errors import ConfigError, InvalidMessage

MAX_SUBJECT: Final = 255  # bytes

_TOKEN = re.compile(r"[!-)+\-/-=?-~]+\Z")  # printable ASCII without space, '*', '.', '>' and ','
_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def check_subject(subject: str) -> str:
    """Return `subject` or raise `InvalidMessage`: what a message may be published to (no wildcards)."""
    problem = _problem(subject, wildcards=False)
    if problem:
        raise InvalidMessage(f"{subject[:80]!r} is not a subject: {problem}")
    return subject


def check_filter(filter: str) -> str:
    """Return `filter` or raise `ConfigError`: what a handler may listen to."""
    problem = _problem(filter, wildcards=True)
    if problem:
        raise ConfigError(f"{filter[:80]!r} is not a filter: {problem}")
    return filter


def check_group(group: str) -> str:
    """Return `group` or raise `ConfigError`."""
    if not _GROUP.match(group):
        raise ConfigError(f"group {group[:80]!r}: a group name has 1 to 64 letters, digits, '-' and '_'")
    return group


def token(value: object) -> str:
    """Encode any text as exactly one subject token; different texts give different tokens."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else _escape(c) for c in str(value)) or "%"


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=4096)
def _problem(subject: str, *, wildcards: bool) -> str | None:
    if not subject:
        return "it is empty"
    if len(subject) > MAX_SUBJECT:
        return f"it is longer than {MAX_SUBJECT} bytes"
    if subject.startswith("$"):
        return "names that begin with '$' belong to the broker"
    tokens = subject.split(".")
    for place, part in enumerate(tokens):
        if wildcards and part == "*":
            continue
        if wildcards and part == ">":
            if place != len(tokens) - 1:
                return "'>' may only stand at the end"
            continue
        if not part:
            return "it has an empty token (a dot too many)"
        if "*" in part or ">" in part:
            return (
                "a wildcard stands for a whole token ('orders.*'), never for a part of one"
                if wildcards
                else ("wildcards belong into filters")
            )
        if not _TOKEN.match(part):
            return f"{part[:40]!r} has a character other than printable ASCII without spaces and commas"
    return None


@lru_cache(maxsize=65536)
def matches(filter: str, subject: str) -> bool:
    """Whether `filter` covers `subject`."""
    wanted, got = filter.split("."), subject.split(".")
    for place, part in enumerate(wanted):
        if part == ">":
            return len(got) > place
        if place >= len(got) or part not in ("*", got[place]):
            return False
    return len(wanted) == len(got)


@lru_cache(maxsize=65536)
def within(filters: tuple[str, ...], subject: str) -> bool:
    """Whether one of `filters` covers `subject`."""
    return any(matches(filter, subject) for filter in filters)


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject that the filter `narrow` matches is matched by the filter `wide`."""
    left, right = wide.split("."), narrow.split(".")
    for place, part in enumerate(left):
        if part == ">":
            return len(right) > place
        if place >= len(right):
            return False
        if right[place] == ">" or (part != "*" and part != right[place]):
            return False
    return len(left) == len(right)


def overlap(one: str, other: str) -> bool:
    """Whether some subject is matched by both filters."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if a == ">" or b == ">":
            return True
        if a != b and a != "*" and b != "*":
            return False
    return len(left) == len(right)


def normalise(filters: list[str]) -> list[str]:
    """`filters` without doubles and without those that another one covers, in the order given."""
    kept: list[str] = []
    for filter in dict.fromkeys(filters):
        if any(covers(other, filter) for other in filters if other != filter):
            continue
        kept.append(filter)
    return kept
