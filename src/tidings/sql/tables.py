"""What the framework's tables are called: their prefix, and on PostgreSQL their schema."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tidings.errors import ConfigError

_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,30}\Z")


class Tables(msgspec.Struct, frozen=True):
    """`tidings_inbox` and its like, or what the user has chosen. Both words become part of SQL: only what needs no
    quoting is let through. Raises `ConfigError`."""

    prefix: str = "tidings_"
    schema: str | None = None
    """None is the first one of the connection's search path."""

    def __post_init__(self) -> None:
        for name, value in (("prefix", self.prefix), ("schema", self.schema)):
            if value is not None and not _NAME.match(value):
                raise ConfigError(f"{name}={value!r}: use up to 31 lower case letters, digits and '_', no digit first")

    @property
    def before(self) -> str:
        """What stands before `inbox` and `outbox` in SQL."""
        return f'"{self.schema}".{self.prefix}' if self.schema else self.prefix
