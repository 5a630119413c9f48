"""`python -m soak.worker FOLDER URL`: handle until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from soak import defects, events
from soak.history import History
from tidings.cli.running import work
from tidings.logs import configure


def main(folder: Path, url: str) -> None:
    history = History(folder / "history", "worker")
    defects.arm(folder)
    bus = events.make_bus(folder, url, history)
    configure("info")
    asyncio.run(work(bus))
    history.say("stop", "ok")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
