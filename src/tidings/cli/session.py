"""A connection to the engine for the time of one command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import click

from .. import claims, engines
from ..clock import SystemClock
from ..engine import Engine
from ..errors import ConfigError
from ..permissions import User
from .options import configure_logs, settings

T = TypeVar("T")


@asynccontextmanager
async def session(user: User = "work", *, make: bool = False) -> AsyncIterator[Engine]:
    """The engine of the settings, connected. An embedded broker that does not run is started for that long.

    With `make` also one that has no data yet, and a namespace where there is none. One that is there is taken as it
    is: no command changes its roots.

    A `MemoryStore` given to the command line as `obj=` is what `memory:` means then; without one it is refused.
    """
    current = settings()
    place = engines.parse(current.url, current.namespace)
    store = click.get_current_context().find_root().obj
    if place.kind == "memory" and store is None:
        raise ConfigError("memory: lives inside one process, the command line cannot see into it: use embedded:")
    async with AsyncExitStack() as stack:
        engine = await engines.connect(
            place,
            stack,
            roots=current.roots,
            clock=SystemClock(),
            store=store,
            user=user,
            mode="join" if make else "look",
        )
        await claims.load(engine)  # refuses the layout of another version before anything is touched
        yield engine


def own() -> bool:
    """Whether making a namespace takes nothing from anybody: on this project's own broker, and on Redis, where one is
    a few keys."""
    current = settings()
    return engines.parse(current.url, current.namespace).kind in ("embedded", "redis")


def roots(engine: Engine) -> tuple[str, ...]:
    """What applications store on this engine: the roots of its namespace; in memory, those of the settings."""
    found: tuple[str, ...] = getattr(engine, "roots", ())
    return tuple(root for root in found if not root.startswith("_")) or settings().roots  # ticks are ours


def namespace() -> str:
    """The namespace of the settings: of the option, else of the URL."""
    current = settings()
    return engines.parse(current.url, current.namespace).namespace


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work in an event loop; Ctrl-C cancels it."""
    try:
        configure_logs()
    except BaseException:
        work.close()
        raise
    return asyncio.run(work)
