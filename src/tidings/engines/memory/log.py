"""The log of the memory engine: every message once, in the order of its arrival."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from tidings.clock import Clock
from tidings.engine import Entry, Headers, Outgoing
from tidings.errors import InvalidMessage, TooLarge
from tidings.subjects import check_subject, matches

from .bell import Bell

_NAME: Final = re.compile(r"(?!nats-)[A-Za-z0-9-]{1,64}\Z", re.IGNORECASE)
_VALUE: Final = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?\Z")
_MAX_HEADERS: Final = 40 * 1024


def check(message: Outgoing, limit: int) -> int:
    """The size of the message in bytes; raises `InvalidMessage` or `TooLarge` for what not every engine can carry."""
    check_subject(message.subject)
    _check_value("the id", message.id)
    for name, value in message.headers.items():
        if not _NAME.match(name):
            raise InvalidMessage(
                f"{name[:80]!r} is not a header name: use letters, digits and '-', and none that begins with 'Nats-'"
            )
        _check_value(f"the header {name}", value)
    headers = _weight(message.headers)
    size = len(message.subject) + len(message.body) + headers
    if size > limit:
        raise TooLarge(size, limit)
    if headers > _MAX_HEADERS:
        raise InvalidMessage(f"the headers have {headers:,} bytes, the limit is {_MAX_HEADERS:,}: put it into the body")
    return size


def size_of(entry: Entry) -> int:
    """Bytes an entry counts for."""
    return len(entry.subject) + len(entry.body) + _weight(entry.headers)


def _check_value(what: str, value: str) -> None:
    if not _VALUE.match(value):
        raise InvalidMessage(f"{what} has the value {value[:80]!r}: only printable ASCII without blanks at the ends")


def _weight(headers: Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.items())


class Log:
    """Entries by position, and which (subject, id) pairs were stored lately."""

    def __init__(self, clock: Clock, window: float) -> None:
        self._clock = clock
        self._window = window
        self._entries: dict[int, Entry] = {}
        self._known: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._subjects: Counter[str] = Counter()
        self.bytes = 0
        self.last = 0
        self.arrived = Bell()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def first(self) -> int:
        """Position of the oldest entry; of an empty log: where the next one will be."""
        return next(iter(self._entries), self.last + 1)

    def append(self, message: Outgoing) -> Entry:
        """Store the message behind all others."""
        self.last += 1
        entry = Entry(self.last, message.subject, self._clock.time(), dict(message.headers), bytes(message.body))
        self._entries[self.last] = entry
        self.remember(message, self.last)
        self._subjects[entry.subject] += 1
        self.bytes += size_of(entry)
        self.arrived.ring()
        return entry

    def remember(self, message: Outgoing, position: int) -> None:
        """Know the (subject, id) for the dedupe window."""
        self._known[message.subject, message.id] = (position, self._clock.monotonic())

    def known(self, message: Outgoing) -> int | None:
        """Where the same (subject, id) was stored within the dedupe window, or None."""
        horizon = self._clock.monotonic() - self._window
        while self._known and next(iter(self._known.values()))[1] < horizon:
            self._known.popitem(last=False)
        found = self._known.get((message.subject, message.id))
        return None if found is None else found[0]

    def remove(self, entry: Entry) -> None:
        """Forget an entry; its id stays known for the rest of the window."""
        del self._entries[entry.position]
        self._subjects[entry.subject] -= 1
        if not self._subjects[entry.subject]:
            del self._subjects[entry.subject]
        self.bytes -= size_of(entry)

    def after(self, filters: Sequence[str], position: int, limit: int) -> list[Entry]:
        """Up to `limit` matching entries behind `position`, oldest first."""
        found: list[Entry] = []
        for place in range(max(position + 1, self.first), self.last + 1):
            if len(found) >= limit:
                break
            entry = self._entries.get(place)
            if entry is not None and any(matches(filter, entry.subject) for filter in filters):
                found.append(entry)
        return found

    def subjects(self, filter: str) -> dict[str, int]:
        """Stored subjects that match, with the number of entries on each."""
        return {subject: count for subject, count in self._subjects.items() if matches(filter, subject)}
