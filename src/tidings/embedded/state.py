"""What the supervisor tells: a small file for clients and people. Life is told by locks alone."""

from __future__ import annotations

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
    phase: Literal["starting", "ready"] = "starting"
    server: int | None = None
    """Pid of nats-server, for display only."""
    port: int | None = None
    """Where it answers, or answered last: asked for again at the next start."""
    version: str = ""
    problem: str = ""
    """Why the server does not come up; empty when it does, or has not failed yet."""
    at: float = 0.0
    """When this was written, seconds since 1970."""
    restarts: int = 0
    """How often the server ended without being asked to, under this supervisor."""
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, path: Path) -> State | None:
        """The last report, or None when there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
