"""What the supervisor tells: a small file for clients and people. Life is told by locks alone."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .config import write_private


@dataclass(frozen=True)
class State:
    """One report of a supervisor; it stands for the present only while that supervisor holds its lock."""

    supervisor: int
    """Pid of the one who reports."""
    phase: Literal["starting", "ready", "full"] = "starting"
    """`full`: stopped, because the disk takes no more; started again by itself when there is space."""
    server: int | None = None
    """Pid of nats-server, for display only."""
    port: int | None = None
    """Where it answers, or answered last: asked for again at the next start."""
    version: str = ""
    problem: str = ""
    """Why the server does not come up or was stopped; empty when it does, or has not failed yet."""
    at: float = 0.0
    """When this was written, seconds since 1970."""
    restarts: int = 0
    """How often the server ended without being asked to, under this supervisor."""
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replace the report; on a full disk overwrite it in place, which needs no new block.

        A reader in that moment may see half of it, reads None, and looks again.
        """
        text = json.dumps(asdict(self), indent=2)
        try:
            write_private(path, text)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
                raise
            with path.open("r+b", buffering=0) as file:
                file.write(text.encode())
                file.truncate()

    @classmethod
    def read(cls, path: Path) -> State | None:
        """The last report, or None when there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
