"""What `up`, `demo` and `run --workers` share: which processes to run, and what their terminal shows."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO, Final, TypeAlias

import click

from ..errors import ConfigError, EngineUnavailable
from ..logs import printable
from ..processes import Children, Program, supervise
from ..settings import Settings
from . import options, output

_COLOURS: Final = ("cyan", "yellow", "green", "magenta", "blue", "bright_red")
_WEB_STAGE, _WORKER_STAGE = 0, 1
_WEB_GRACE: Final = 10.0

Listener: TypeAlias = socket.socket
Ready: TypeAlias = Callable[[], Awaitable[bool]]
Broker: TypeAlias = Callable[[AsyncExitStack, "Terminal"], Awaitable[None]]
"""Starts what carries the messages; the stack stops it when all programs have ended."""


class Terminal:
    """Lines of several processes, each behind the name of who says it; optionally kept in a file as well."""

    def __init__(self, names: Iterable[str], log: IO[str] | None = None) -> None:
        self._names = list(dict.fromkeys(names))
        self._width = max(map(len, self._names), default=0)
        self._log = log
        self._gone = False

    def line(self, name: str, text: str) -> None:
        """One line of a process; its author may be a stranger."""
        if name not in self._names:
            self._names.append(name)
        colour = _COLOURS[self._names.index(name) % len(_COLOURS)]
        plain = printable(text)
        self._show(f"{output.coloured(name.ljust(self._width) + ' |', fg=colour)} {plain}")
        self._keep(f"{name} | {plain}")

    def say(self, text: str = "") -> None:
        """A line of our own."""
        self._show(printable(text))
        self._keep(printable(text))

    def _show(self, text: str) -> None:
        if self._gone:
            return
        try:
            click.echo(text)
        except OSError:
            # Nobody reads any more (`tidings up | head`): stop as if asked to.
            self._gone = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _keep(self, text: str) -> None:
        if self._log is not None:
            try:
                self._log.write(text + "\n")
                self._log.flush()
            except OSError:
                self._log = None  # a full disk must not end what is running


def run(
    programs: Sequence[Program],
    terminal: Terminal,
    *,
    broker: Broker | None = None,
    ready: Ready | None = None,
    patience: float | None = None,
) -> int:
    """Run the programs until asked to stop, and the broker beside them; returns the exit code.

    `ready` is called when all are ready for the first time and says whether to go on; with `patience`, not to get
    that far within so many seconds is an error.
    """
    options.configure_logs("info")
    return asyncio.run(_attended(programs, terminal, broker, ready or _going_on, patience))


async def _attended(
    programs: Sequence[Program],
    terminal: Terminal,
    broker: Broker | None,
    ready: Ready,
    patience: float | None,
) -> int:
    children = Children(programs, terminal.line)
    async with AsyncExitStack() as stack:

        async def start_broker() -> None:
            if broker is not None:
                await broker(stack, terminal)

        async def begin() -> bool:
            try:
                async with asyncio.timeout(patience):
                    await children.ready()
                    return await ready()
            except TimeoutError:
                raise EngineUnavailable(f"not ready after {patience:g} s: see above") from None

        return await supervise(children, begin, terminal.say, first=start_broker)


async def _going_on() -> bool:
    return True


def embedded_broker(directory: Path | None) -> Broker | None:
    """The one that lives in `directory`, if any. The programs start it just as well; held here it outlives each of
    them, and its trouble is told once."""
    if directory is None:
        return None

    async def start(stack: AsyncExitStack, terminal: Terminal) -> None:
        from .. import embedded

        broker = await embedded.start(directory)
        stack.push_async_callback(broker.close)
        where = f"on port {broker.address.port}, data in {broker.directory}"
        terminal.line("broker", f"nats-server {broker.version} {where}")

    return start


def broker_directory(settings: Settings) -> Path | None:
    """Where the embedded broker of these settings lives; None for other engines."""
    from .. import embedded, engines

    place = engines.parse(settings.url, settings.namespace)
    if place.kind == "memory":
        raise ConfigError("memory: lives inside one process, several cannot share it: use embedded:")
    return (place.directory or embedded.project_directory()) if place.kind == "embedded" else None


def worker(name: str, where: str, chosen: Sequence[str] = (), *, grace: float) -> Program:
    """A worker process of the bus at `where`; `chosen` are further arguments of `tidings run`."""
    return Program(
        name,
        ("-m", "tidings", "run", where, *chosen),
        environment=_environment(),
        stage=_WORKER_STAGE,
        grace=grace + 5.0,
    )


def workers(where: str, scales: dict[str, int], *, grace: float) -> list[Program]:
    """One process for all groups, and further ones for the groups that are scaled."""
    more = [
        worker(f"{group} #{n}", where, ("--group", group), grace=grace)
        for group, count in scales.items()
        for n in range(2, count + 1)
    ]
    return [worker("workers", where, grace=grace), *more]


def web(where: str, listener: Listener) -> Program:
    """A process that serves the ASGI application at `where`. The socket stays ours: while the process is started
    again, connections wait."""
    descriptor = listener.fileno()
    return Program(
        "web",
        ("-m", "tidings", "web", where, "--fd", str(descriptor)),
        environment=_environment(),
        descriptors=(descriptor,),
        stage=_WEB_STAGE,
        grace=_WEB_GRACE,
    )


def _environment() -> dict[str, str]:
    """What was given to us on the command line, for our children."""
    return {f"TIDINGS_{name.upper()}": str(value) for name, value in options.given().items()}


def parse_scales(given: Sequence[str]) -> dict[str, int]:
    """`["save=3"]` as `{"save": 3}`; raises a usage error."""
    scales = {}
    for text in given:
        group, _, count = text.partition("=")
        if not group or not count.isdecimal() or int(count) < 1:
            raise click.BadParameter(f"{text!r}: write GROUP=N with N from 1 on, as in --scale save=3")
        scales[group] = int(count)
    return scales


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigError` that names what to do when the port is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is taken by another program: choose another with --port, "
                "or let --port 0 find a free one"
            ) from None
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None


def has_display() -> bool:
    """Whether a browser could be shown to somebody."""
    if not sys.stdout.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
