"""Moments at which a process can be made to die, so that tests see what a crash leaves behind.

`TIDINGS_FAILPOINT=relay.sent@3` kills the process (SIGKILL: nothing is flushed, nothing is closed) when it comes to
`relay.sent` for the third time. Without the variable a moment costs one call that looks at one name.
"""

from __future__ import annotations

import os
import re
import signal
from typing import Final

from .errors import ConfigError

FAILPOINTS: Final = {
    "pull.ended": "messages are in hand, nothing is done with them",
    "inbox.marked": "the transaction has the inbox mark, the handler has not begun",
    "handler.returned": "the handler has written and returned",
    "outbox.staged": "the event is in the outbox, the transaction is open",
    "commit.begun": "right before the worker's COMMIT",
    "commit.ended": "committed: nothing is sent, nothing is acknowledged",
    "outbox.committed": "the application's own transaction has ended, the relay has not heard of it",
    "relay.begun": "the relay is about to send what was committed",
    "relay.sent": "in the log, and still in the outbox",
    "relay.marked": "taken out of the outbox",
    "relay.leased": "the relay has leased what another process left, and has sent none of it",
    "settle.begun": "handled, the acknowledgement has not left",
    "settle.ended": "acknowledged",
}
"""Each failpoint, and what is true there."""


class _Armed:
    def __init__(self, name: str, times: int) -> None:
        self.name = name
        self._left = times

    def reached(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


_armed: _Armed | None = None


def here(name: str) -> None:
    """This is the failpoint `name`: returns at once, unless it is the armed one and its time has come."""
    if _armed is not None and _armed.name == name:
        _armed.reached()


def arm(what: str) -> None:
    """Make this process die at `NAME` or `NAME@TIMES`; an empty text makes it live on. Raises `ConfigError`."""
    global _armed
    if not what:
        _armed = None
        return
    match = re.fullmatch(r"([a-z.]+)(?:@([1-9]\d{0,5}))?", what, re.ASCII)
    if match is None or match[1] not in FAILPOINTS:
        raise ConfigError(f"no failpoint {what!r}: write NAME or NAME@TIMES, of {', '.join(FAILPOINTS)}")
    _armed = _Armed(match[1], int(match[2] or 1))


arm(os.environ.get("TIDINGS_FAILPOINT", ""))
