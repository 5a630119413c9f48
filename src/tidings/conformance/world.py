"""What a case is given: a namespace of its own on some engine, and what may happen to it."""

from __future__ import annotations

from typing import Protocol

from tidings.clock import Clock
from tidings.engine import Engine


class World(Protocol):
    """One empty namespace whose root is `events.>`, used by one case only.

    Whoever adapts the suite to an engine supplies this. Engines a case leaves open are closed by the world's owner.
    """

    lease: float
    """Seconds of the leases that cases ask for: as short as can be kept on a busy machine."""
    moment: float
    """Seconds after which whatever was under way has surely arrived: how long to look before saying nothing came."""

    @property
    def clock(self) -> Clock:
        """The engine's own time."""
        ...

    async def engine(self) -> Engine:
        """Open one more connection."""
        ...

    async def crash(self, engine: Engine) -> None:
        """End a connection as if its process was killed: nothing is handed back, nothing more is sent."""
        ...

    async def restart(self) -> None:
        """End what keeps the messages as hard as it is made for, and start it again; open connections stay in use.

        An engine that lives in the process has nothing to restart and returns at once.
        """
        ...

    async def wait(self, seconds: float) -> None:
        """Let the engine's own time pass. Only for waits where time itself is the condition."""
        ...
