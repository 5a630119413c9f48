"""Runs the processes of a demo, finds out when they are ready, and says what to do next."""

from __future__ import annotations

import asyncio
import shlex
import socket
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec

from ..cli import attend
from ..cli.attend import Terminal
from ..embedded.locks import FileLock
from ..errors import BrokerError, ConfigError, EngineUnavailable, MissingExtra
from . import valkey
from .plan import USUAL_PORT, Demo, command

HOST: Final = "127.0.0.1"
_PATIENCE: Final = 60.0  # seconds that --exit-after-ready waits
_LOG_LIMIT: Final = 10 * 1024 * 1024


def run(demo: Demo, *, engine: str = "embedded", open_browser: bool, exit_after_ready: bool) -> int:
    """Run it until it is asked to stop; returns the exit code."""
    began = time.monotonic()
    _check_installed()
    with _log(demo.log) as log, _alone(demo), _listen(demo.port) as listener:
        if engine == "valkey":
            demo = msgspec.structs.replace(demo, valkey=valkey.prepare(demo.valkey_folder))
        if demo.foreign_database:
            _make_tables(demo.database_url)
        port = listener.getsockname()[1]
        programs = [demo.web(listener), *demo.programs()]
        terminal = Terminal(["broker", *(program.name for program in programs)], log)
        terminal.say("Starting the to-do system …")
        if demo.port is None and port != USUAL_PORT:
            terminal.say(f"Port {USUAL_PORT} is taken, so the page is on {port}.")
        page = f"http://{HOST}:{port}"
        _introduce(terminal, demo, page)

        async def ready() -> bool:
            await _answers(port)
            terminal.say(f"Ready after {time.monotonic() - began:.1f} s: {page}")
            _next_steps(terminal, demo, page)
            if open_browser and not exit_after_ready and attend.has_display():
                # In a thread that nobody waits for: some browsers come back only when they are closed.
                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
            return not exit_after_ready

        patience = _PATIENCE if exit_after_ready else None
        try:
            return attend.run(programs, terminal, broker=_broker(demo), ready=ready, patience=patience)
        except BrokerError as error:
            if "embedded:" not in str(error):
                raise
            # Another directory would help; here it is chosen in other words.
            raise BrokerError(f"{error}. For the demo: --data DIR") from error


def _make_tables(database_url: str) -> None:
    """On SQLite the tables come by themselves; in a database of somebody's own nobody makes any unasked, but a demo."""
    from ..sql import Migrations

    asyncio.run(Migrations(database_url).upgrade())


def _broker(demo: Demo) -> attend.Broker | None:
    if not demo.valkey:
        return attend.embedded_broker(demo.data)

    async def start(stack: AsyncExitStack, terminal: Terminal) -> None:
        def say(text: str) -> None:
            terminal.line("broker", text)

        await stack.enter_async_context(valkey.serving(demo.valkey_folder, demo.valkey, say))

    return start


def _check_installed() -> None:
    from importlib.util import find_spec

    for package in ("starlette", "uvicorn", "sse_starlette", "sqlalchemy", "aiosqlite"):
        if find_spec(package) is None:
            raise MissingExtra(f"{package}, which the to-do system needs,", "demo")


@contextmanager
def _alone(demo: Demo) -> Iterator[None]:
    """Hold the data folder: two demos in it would run each group twice, and share one log. Ends with this process."""
    lock = FileLock(demo.data / "demo.lock")
    if not lock.try_acquire():
        raise ConfigError(
            f"a demo with its data in {demo.data} is running: stop that one (Ctrl-C where it was started), "
            "or choose another folder: --data DIR"
        )
    with lock:
        yield


def _listen(port: int | None) -> socket.socket:
    if port is not None:
        return attend.listen(HOST, port)
    try:
        return attend.listen(HOST, USUAL_PORT)
    except ConfigError:
        return attend.listen(HOST, 0)


def _log(path: Path) -> IO[str]:
    """The log file, appended to; a large one of earlier times is put aside once."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
        return path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        why = f"the data folder {path.parent.parent} cannot be used: {error.strerror or error}"
        raise EngineUnavailable(f"{why}. Choose another: --data DIR") from error


async def _answers(port: int) -> None:
    """Return when the page's process answers that it can do its work."""
    while True:
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection(HOST, port)
                try:
                    writer.write(f"GET /ready HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                    status = await reader.readline()
                finally:
                    writer.close()
            if b" 200 " in status:
                return
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(0.05)


def _introduce(terminal: Terminal, demo: Demo, page: str) -> None:
    terminal.say(f"  page   {page}")
    terminal.say(f"  data   {demo.data}")
    broker_log = demo.valkey_folder / "valkey.log" if demo.valkey else demo.data / "log" / "nats-server.log"
    terminal.say(f"  logs   {demo.log}, {broker_log}")
    terminal.say("  stop   Ctrl-C; what is stored stays, the next start goes on with it")


def _next_steps(terminal: Terminal, demo: Demo, page: str) -> None:
    tidings = command()
    terminal.say("Next, in another terminal, from any folder:")
    # A password belongs into no terminal: it stands in a file that nobody else can read.
    url = f'"$(cat {shlex.quote(str(demo.valkey_folder / "url"))})"' if demo.valkey else shlex.quote(demo.url)
    terminal.say(f"  export TIDINGS_URL={url}")
    if demo.foreign_database:
        from ..sql import masked

        terminal.say(f"  export TIDINGS_DATABASE_URL={shlex.quote(masked(demo.database_url))}")
    terminal.say(f"  curl {page}/todo -H 'Content-Type: application/json' -d '{{\"item\": \"write the docs\"}}'")
    terminal.say(f"  {tidings} tail 'events.todo.>' --since -5m")
    terminal.say(f"  {tidings} groups ls")
    terminal.say(f"  {tidings} doctor")
