"""Runs the processes of a demo, finds out when they are ready, and says what to do next."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import sys
import threading
import time
import webbrowser
from pathlib import Path
from typing import IO, Final

from ..cli import attend
from ..cli.attend import Terminal
from ..embedded import project_directory
from ..errors import ConfigError, EngineUnavailable, MissingExtra
from .plan import USUAL_PORT, Demo

HOST: Final = "127.0.0.1"
_PATIENCE: Final = 60.0  # seconds that --exit-after-ready waits
_LOG_LIMIT: Final = 10 * 1024 * 1024


def run(demo: Demo, *, open_browser: bool, exit_after_ready: bool) -> int:
    """Run it until it is asked to stop; returns the exit code."""
    began = time.monotonic()
    _check_installed()
    with _listen(demo.port) as listener, _log(demo.log) as log:
        port = listener.getsockname()[1]
        programs = [demo.web(listener), *demo.programs()]
        terminal = Terminal(["broker", *(program.name for program in programs)], log)
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
        return attend.run(programs, terminal, directory=demo.data, ready=ready, patience=patience)


def _check_installed() -> None:
    from importlib.util import find_spec

    for package in ("starlette", "uvicorn", "sse_starlette", "sqlalchemy", "aiosqlite"):
        if find_spec(package) is None:
            raise MissingExtra(f"{package}, which the to-do system needs,", "demo")


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
    terminal.say(f"  logs   {demo.log}, {demo.data / 'log' / 'nats-server.log'}")
    terminal.say("  stop   Ctrl-C; what is stored stays, the next start goes on with it")


def _next_steps(terminal: Terminal, demo: Demo, page: str) -> None:
    tidings = _command(demo)
    terminal.say("Next, in another terminal:")
    terminal.say(f"  curl {page}/todo -H 'Content-Type: application/json' -d '{{\"item\": \"write the docs\"}}'")
    terminal.say(f"  {tidings} tail 'events.todo.>' --since -5m")
    terminal.say(f"  {tidings} groups ls")


def _command(demo: Demo) -> str:
    """How to call the command line for this demo from the folder one stands in."""
    script = Path(sys.executable).with_name("tidings")
    on_path = any(Path(folder, "tidings").exists() for folder in os.environ.get("PATH", "").split(os.pathsep) if folder)
    program = "tidings" if on_path or not script.exists() else shlex.quote(_near(script))
    if demo.data == project_directory():
        return program
    return f"TIDINGS_URL={shlex.quote(f'embedded:{_near(demo.data)}')} {program}"


def _near(path: Path) -> str:
    """Relative to the working directory where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
