"""What a process of the workload says before and after each step: lines of JSON that survive `kill -9`.

One `write` for each line, into a file of the process's own: a killed process leaves whole lines, and what it had
said before a step is in the kernel's hands when the step begins.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class History:
    """The history of this process."""

    def __init__(self, folder: Path, process: str) -> None:
        self._process = process
        self._count = 0
        path = folder / f"{process}-{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, f: str, type: str, **detail: Any) -> None:
        """`f` is the step; `type` is `invoke` before it, then `ok`, `fail` (not done) or `info` (done or not)."""
        self._count += 1
        line = {
            "process": self._process,
            "pid": os.getpid(),
            "n": self._count,
            "mono_ns": time.monotonic_ns(),
            "wall": time.time(),
            "f": f,
            "type": type,
            **detail,
        }
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of all processes, process by process."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
