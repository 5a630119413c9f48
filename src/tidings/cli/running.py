"""`up` and `run`: processes that stay."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from .. import lifeline
from ..errors import ConfigError
from . import options

if TYPE_CHECKING:
    from ..bus import Bus

log = logging.getLogger("tidings")


@click.command()
@click.argument("app", metavar="[MODULE:BUS]", required=False)
@click.option("--group", "-g", "groups", multiple=True, help="Only this group of handlers; may be repeated.")
@click.option("--workers", "-w", type=click.IntRange(1), default=1, show_default=True, help="Processes to run.")
@options.common
def run(app: str | None, groups: tuple[str, ...], workers: int) -> None:
    """Run the handlers of a bus.

    SIGTERM or Ctrl-C drains: no new messages, running handlers finish, the rest is handed back; then exit code 0. A
    second one ends at once.

    \b
    tidings run app.handlers:bus
    tidings run app.handlers:bus --group save --workers 4
    """
    current = options.settings()
    where = app or current.app
    if workers > 1 and where:
        from . import attend

        name = where.partition(":")[0].rpartition(".")[2]
        chosen = tuple(word for group in groups for word in ("--group", group))
        programs = [attend.worker(f"{name} #{n}", where, chosen, grace=current.grace) for n in range(1, workers + 1)]
        raise click.exceptions.Exit(attend.run(programs, attend.Terminal(p.name for p in programs)))
    from .find import load_bus

    options.configure_logs("info")
    bus = load_bus(where)
    _check_handlers(bus, str(where))
    bus.configure(**options.given())
    asyncio.run(work(bus, groups))


def _check_handlers(bus: Bus, where: str) -> None:
    """Raise `ConfigError` for a bus that would never do anything; who has a database may only want its outbox sent."""
    if not bus.registry.idle:
        return
    text = f"{where} has no handlers: import the modules with @bus.on(…) where the bus is made, below it, or run theirs"
    if not bus.sessions:
        raise ConfigError(text)
    log.warning("%s. What is in its outbox is sent", text)


async def work(bus: Bus, groups: Sequence[str] = ()) -> None:
    """Handle messages until a signal asks to stop; returns when everything is settled or handed back."""
    asked = asyncio.Event()

    def ask() -> None:
        if asked.is_set():
            os._exit(130)
        log.info("stopping")
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ask)
    stopping = asyncio.create_task(asked.wait())
    starting = asyncio.create_task(bus.work(groups or None))
    try:
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _spare_collector()
            known = bus.registry
            heard = (channel for listener in known.listeners for channel in listener.handler.filters)
            handled = groups or (*known.handlers, *known.schedules, *known.responders, *heard)
            log.info("ready: %s on %s", ", ".join(handled), bus.engine.description)
            lifeline.tell_ready()
            await stopping
    finally:
        for task in (stopping, starting):
            task.cancel()
        await asyncio.gather(stopping, starting, return_exceptions=True)
        await bus.close()


def _spare_collector() -> None:
    """What is there now stays until the process ends: modules, classes, the bus. A busy worker makes full collections,
    and each would go through all of it: with SQLAlchemy, and handlers that share a transaction, a quarter of its time.
    """
    gc.collect()
    gc.freeze()


@click.command()
@click.argument("app", metavar="[MODULE:BUS]", required=False)
@click.option("--web", metavar="MODULE:APP", help="An ASGI application to serve as well.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the web application listens.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--scale", "scales", metavar="GROUP=N", multiple=True, help="N processes for a group; may be repeated.")
@options.common
def up(app: str | None, web: str | None, host: str, port: int, scales: tuple[str, ...]) -> None:
    """Run broker, workers and web application in this terminal.

    One worker process handles all groups; --scale adds processes for one group. What ends is started again. Ctrl-C
    stops everything in order: the web application, the workers (drained), the broker. A second one kills.

    \b
    tidings up app.handlers:bus --web app.web:app
    tidings up app.handlers:bus --scale save=3
    """
    from . import attend

    current = options.settings()
    where = app or current.app
    if not where and not web:
        raise click.UsageError("say what to run: MODULE:BUS, or --web MODULE:APP")
    programs = attend.workers(where, attend.parse_scales(scales), grace=current.grace) if where else []
    terminal = attend.Terminal(["broker", "web", *(program.name for program in programs)])
    with attend.listen(host, port) if web else nullcontext() as listener:
        if web and listener:
            programs.append(attend.web(web, listener))
            terminal.say(f"http://{host}:{listener.getsockname()[1]} serves {web}")
        directory = attend.broker_directory(current)
        raise click.exceptions.Exit(attend.run(programs, terminal, broker=attend.embedded_broker(directory)))
