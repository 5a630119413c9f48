"""The child's end of the socket that `tidings.processes` gives its children.

`hold` is called first thing by every command. In a child of `up` or `demo` it watches for the parent's death: then
the process asks itself to stop, as a SIGTERM would, and ends itself if that takes too long. So nothing is left behind
even by a parent that was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from typing import Final

NAME: Final = "TIDINGS_LIFELINE"
"""Environment variable that names the child's end of the socket."""
READY: Final = b"ready\n"
_ORPHAN_GRACE: Final = 10.0  # seconds an orphan may take to stop by itself

_held: socket.socket | None = None


def hold() -> None:
    """Watch the lifeline, if this process has been given one. Its own children do not inherit it."""
    global _held
    descriptor = os.environ.pop(NAME, "")
    if not descriptor.isdecimal():
        return
    try:
        _held = socket.socket(fileno=int(descriptor))
    except OSError:
        return
    _held.set_inheritable(False)
    threading.Thread(target=_watch, args=(_held,), name="tidings-lifeline", daemon=True).start()


def tell_ready() -> None:
    """Tell the parent that this process does its work now; nothing happens where there is none."""
    if _held is not None:
        with contextlib.suppress(OSError):  # the parent is gone: `_watch` knows
            _held.sendall(READY)


def _watch(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while end.recv(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
