"""Header blocks as they came over the wire, read only as far as somebody asks.

Most handlers ask for no header, and making a dict of a block costs more than all the rest of a message's way in. So the
block is kept, and a single header is looked up in it.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, TypeVar, overload

import msgspec

ORIGIN: Final = "Tidings-Origin"
"""The one header of ours in inbox messages and dead letters: JSON in ASCII."""

T = TypeVar("T")

_VERSION: Final = len(b"NATS/1.0")
_BLANK: Final = b" "[0]


def is_senders(name: str) -> bool:
    """Whether a header is the sender's own: not one that means something to the server or to us."""
    return not name.lower().startswith("nats-") and name not in (ORIGIN, "Status", "Description")


@lru_cache(maxsize=4096)
def _line(name: str) -> bytes:
    """What stands before a header's value."""
    return b"\r\n%b:" % name.encode("utf-8", "surrogateescape")


@lru_cache(maxsize=4096)
def _senders_line(name: str) -> bytes | None:
    return _line(name) if is_senders(name) else None


class _Type(msgspec.StructMeta, ABCMeta):
    """Of a `Struct` that is a `Mapping`."""


class Block(Mapping[str, str], msgspec.Struct, eq=False, gc=False, metaclass=_Type):
    """All headers of one message. What the server itself says stands under `Status` and `Description`.

    Names are as the sender wrote them; values lose blanks at their ends. Of several with one name the last counts.
    """

    raw: bytes
    """From `NATS/1.0` to the empty line."""
    parsed: dict[str, str] | None = None

    @overload
    def get(self, name: str, default: None = None, /) -> str | None: ...
    @overload
    def get(self, name: str, default: str | T, /) -> str | T: ...
    def get(self, name: str, default: object = None, /) -> object:
        raw = self.raw
        if self.parsed is not None or raw[_VERSION] == _BLANK:
            return self._all.get(name, default)
        return _value(raw, _line(name), default)

    def __getitem__(self, name: str) -> str:
        if (value := self.get(name)) is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return repr(self._all)

    @property
    def _all(self) -> dict[str, str]:
        if self.parsed is None:
            self.parsed = self._read()
        return self.parsed

    def _read(self) -> dict[str, str]:
        return _read(self.raw)

    def senders(self) -> SendersBlock:
        """The sender's own headers."""
        return SendersBlock(self.raw)


class SendersBlock(Block, eq=False, gc=False):
    """The sender's own headers: without those that mean something to the server or to us."""

    @overload
    def get(self, name: str, default: None = None, /) -> str | None: ...
    @overload
    def get(self, name: str, default: str | T, /) -> str | T: ...
    def get(self, name: str, default: object = None, /) -> object:
        line = _senders_line(name)
        return default if line is None else _value(self.raw, line, default)

    def _read(self) -> dict[str, str]:
        return {name: value for name, value in _read(self.raw).items() if is_senders(name)}


def _value(raw: bytes, line: bytes, default: object) -> object:
    at = raw.rfind(line)
    if at < 0:
        return default
    at += len(line)
    return raw[at : raw.find(b"\r\n", at)].strip().decode("utf-8", "replace")


def _read(raw: bytes) -> dict[str, str]:
    first, *lines = raw.split(b"\r\n")
    found: dict[str, str] = {}
    status, _, description = first[_VERSION:].strip().partition(b" ")
    if status.isdigit():
        found["Status"] = status.decode()
        if description:
            found["Description"] = description.strip().decode("utf-8", "replace")
    for line in lines:
        name, colon, value = line.partition(b":")
        if name and colon:
            found[name.decode("utf-8", "surrogateescape")] = value.strip().decode("utf-8", "replace")
    return found
