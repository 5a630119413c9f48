"""What follows from a message, read from the log once: whoever looks again reads only what has been stored since."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from ..engine import Engine, Entry
from ..message import CORRELATION, identity

_PAGE: Final = 1000
_MOST: Final = 256
"""Chains that a process remembers, those looked at last: each how far it was read, and its entries without bodies."""


class Chain:
    """A message and the stored ones on some subjects that share its correlation."""

    def __init__(self, engine: Engine, namespace: str, root: Entry, subjects: Sequence[str]) -> None:
        self._engine = engine
        self._subjects = subjects
        self._id = root.headers.get(CORRELATION, root.headers.get("ce-id", identity(root, namespace)))
        self._upto = root.position
        self._entries = [_bare(root)]

    async def read(self) -> list[Entry]:
        """All of them, the message itself first."""
        if self._subjects:
            last = (await self._engine.stats()).last
            async for entry in between(self._engine, self._subjects, self._upto, last):
                if entry.position > self._upto:  # somebody else may have looked meanwhile
                    self._upto = entry.position
                    if entry.headers.get(CORRELATION) == self._id:
                        self._entries.append(_bare(entry))
        return list(self._entries)


class Chains:
    """The chains that one process looks at."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        self.engine = engine
        self.namespace = namespace
        self._chains: dict[tuple[str, int, tuple[str, ...]], Chain] = {}

    def of(self, root: Entry, subjects: Sequence[str]) -> Chain:
        """The chain of a message on some subjects; of none it is the message alone."""
        key = identity(root, self.namespace), root.position, tuple(subjects)
        chain = self._chains.pop(key, None) or Chain(self.engine, self.namespace, root, subjects)
        self._chains[key] = chain
        if len(self._chains) > _MOST:
            del self._chains[next(iter(self._chains))]
        return chain


async def between(engine: Engine, filters: Sequence[str], after: int, upto: int) -> AsyncIterator[Entry]:
    """The stored entries on the filters with `after < position <= upto`."""
    while page := await engine.read(filters, after, min(_PAGE, max(1, upto - after))):
        for entry in page:
            if entry.position > upto:
                return
            yield entry
        after = page[-1].position


def _bare(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, body=b"")
