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

    async def engine(self, *, patience: float | None = None) -> Engine:
        """Open one more connection; its calls wait up to `patience` seconds (default: the engine's own choice) for a
        server that is away."""
        ...

    async def crash(self, engine: Engine) -> None:
        """End a connection as if its process was killed: nothing is handed back, nothing more is sent."""
        ...

    async def restart(self) -> None:
        """End what keeps the messages as hard as it is made for, and start it again; open connections stay in use.

        An engine that lives in the process has nothing to restart and returns at once. Of a cluster it is one server
        that does not lead.
        """
        ...

    async def limit(self, size: int) -> None:
        """From now on, for engines opened later, the store may hold so many bytes of messages."""
        ...

    async def wait(self, seconds: float) -> None:
        """Let the engine's own time pass. Only for waits where time itself is the condition."""
        ...

    async def spread(self) -> None:
        """Wait until each server knows who listens and who answers by now. One alone knows it at once."""
        ...


class WiredWorld(World, Protocol):
    """A world whose messages are kept by another process, behind a wire: both can fail in more ways."""

    async def linked(self, *, patience: float | None = None) -> tuple[Engine, Link]:
        """Open one more connection over a wire of its own."""
        ...

    async def kill(self) -> None:
        """`kill -9` to everything that keeps the messages; it stays away until `start`."""
        ...

    async def start(self) -> None:
        """Start again what was killed, on the same data."""
        ...

    async def fail_over(self) -> None:
        """`kill -9` to the server that leads, and start it again; without a cluster that is the only one."""
        ...

    async def freeze(self) -> None:
        """SIGSTOP: connections stay, and nobody answers, until `thaw`."""
        ...

    async def thaw(self) -> None:
        """SIGCONT."""
        ...

    async def lose_group(self, group: str) -> None:
        """Remove behind the engine's back what the server keeps for a group; the messages stay."""
        ...


class Link(Protocol):
    """The wire of one engine, with faults on demand."""

    def drop(self) -> None:
        """Break what is connected; the next connection gets through."""
        ...

    def cut(self) -> None:
        """Break what is connected and let nobody through, until `mend`."""
        ...

    def mend(self) -> None:
        """Undo `cut`."""
        ...

    def stall(self) -> None:
        """What is connected now carries nothing any more, and nothing says so; the next connection gets through."""
        ...

    def delay(self, seconds: float) -> None:
        """From now on everything takes so much longer, each way."""
        ...

    def drop_after(self, size: int) -> None:
        """`drop`, once `size` more bytes have gone to the server, wherever in a message that is."""
        ...

    def lose_receipt(self) -> None:
        """The next answer to a publish vanishes on its way to the engine."""
        ...

    @property
    def lost(self) -> int:
        """How many answers have vanished."""
        ...
