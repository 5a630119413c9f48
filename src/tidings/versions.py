"""Versions of event types: older messages are brought up to date, newer ones wait for a worker that knows them.

While a system is upgraded, old and new workers share a group, and messages of both versions are in the log. An older
message goes through the upcasters of its class, one step from each version to the next. One that this process cannot
know yet, because its version is newer or its type is none of the handler's, is handed back for a while; only then is
it a dead letter `unknown_type`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from .clock import Clock
from .codec import check_depth
from .engine import Entry
from .errors import ConfigError, DecodeError
from .events import EventSpec
from .message import TYPE, decode_header

log = logging.getLogger("tidings.worker")

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes the JSON object of a version from that of the version before."""

AGAIN: Final = 5.0
"""Seconds after which a message is handed out again that another worker may know."""
_TYPES: Final = 1000


class Upcasters:
    """The steps between versions that a bus knows."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, int], Upcaster] = {}

    def add(self, spec: EventSpec, version: int, step: Upcaster) -> None:
        """Remember what makes version + 1 of version."""
        name = spec.type.__name__
        if not 1 <= version < spec.version:
            raise ConfigError(
                f"{name} has version {spec.version}: an upcaster goes from a version before it (from_version=1 to "
                f"{spec.version - 1}) to the next one"
                if spec.version > 1
                else f"{name} has version 1: there is nothing older. Give the class version=2"
            )
        if (spec.subject, version) in self._steps:
            raise ConfigError(f"{name} already has an upcaster from version {version}")
        self._steps[spec.subject, version] = step

    def current(self, entry: Entry, spec: EventSpec) -> bytes:
        """The entry's body in the version of the class.

        Raises `DecodeError`: `unknown_type` for a newer version, or an older one without a way to this one; `invalid`
        for a body that an upcaster cannot take.
        """
        version = version_of(entry, spec)
        if version == spec.version:
            return entry.body
        if version > spec.version:
            raise DecodeError(
                "unknown_type",
                f"the message is of type {_type(entry)!r}, this process knows {spec.ce_type!r}: upgrade its workers, "
                "then redrive",
            )
        value = _plain(entry.body)
        for old in range(version, spec.version):
            value = self._step(spec, old, value)
        try:
            return msgspec.json.encode(value)
        except Exception as error:
            raise DecodeError(
                "invalid", f"what the upcasters of {spec.type.__name__} made is no JSON: {error}"
            ) from error

    def _step(self, spec: EventSpec, version: int, value: dict[str, Any]) -> dict[str, Any]:
        name = f"{spec.type.__name__}, from_version={version}"
        step = self._steps.get((spec.subject, version))
        if step is None:
            raise DecodeError(
                "unknown_type",
                f"nothing brings version {version} to {version + 1}: register @bus.upcast({name}), then redrive",
            )
        try:
            made = step(value)
        except Exception as error:
            raise DecodeError("invalid", f"@bus.upcast({name}) failed: {type(error).__name__}: {error}") from error
        if not isinstance(made, dict):
            raise DecodeError("invalid", f"@bus.upcast({name}) returned {type(made).__name__}: it returns the new dict")
        return made


def version_of(entry: Entry, spec: EventSpec) -> int:
    """The version that the entry's type says; the class's own for a type that is not of our making, or none."""
    given = entry.headers.get(TYPE, "")
    if given == spec.ce_type:
        return spec.version
    name = decode_header(given)
    if name == spec.subject:
        return 1
    match = re.fullmatch(re.escape(spec.subject) + r"\.v(\d{1,9})", name, re.ASCII)
    return int(match[1]) if match else spec.version


def _type(entry: Entry) -> str:
    return decode_header(entry.headers.get(TYPE, ""))


def _plain(body: bytes) -> dict[str, Any]:
    check_depth(body)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError("undecodable", f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DecodeError("invalid", f"an upcaster takes a JSON object, this is {type(value).__name__}")
    return value


class Patience:
    """How long messages that this process cannot know yet wait for one that does.

    Counted from the message's time, or from when this process first met its type if that was later: so that a
    backlog of new messages does not die before the workers that know them have come.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._met: dict[tuple[str, str], float] = {}

    def left(self, entry: Entry, why: DecodeError) -> float:
        """Seconds that are left, at most `AGAIN` of them; 0 or less when it is over. Says once for each type `why`."""
        now = self._clock.time()
        key = entry.subject, _type(entry)
        met = self._met.get(key)
        if met is None:
            met = self._met[key] = now
            log.warning(
                "left to a worker that knows it, for up to %.0f s, and so are others like it: %s", self._seconds, why
            )
            if len(self._met) > _TYPES:
                del self._met[next(iter(self._met))]
        return min(AGAIN, max(met, entry.time) + self._seconds - now)
