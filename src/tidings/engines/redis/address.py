"""Where the server is, and as whom to come."""

from __future__ import annotations

from typing import Literal

import msgspec

Durability = Literal["checked", "always", "everysec", "none"]
"""`checked`: the server is asked, and refused unless it appends to a file and drops nothing; the others are the word
of the person who runs it, where it may not be asked."""


class Address(msgspec.Struct, frozen=True):
    """One server."""

    host: str
    port: int = 6379
    user: str | None = None
    password: str | None = None
    tls: bool = False
    database: int = 0
    durability: Durability = "checked"

    def __repr__(self) -> str:
        return f"Address({self.shown}, user={self.user!r})"

    @property
    def shown(self) -> str:
        """For people, without the password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"
