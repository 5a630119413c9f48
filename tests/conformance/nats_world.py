"""The NATS engine as a world: a nats-server of its own for each case, which a restart kills and starts again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path

from tidings.clock import Clock, SystemClock
from tidings.embedded.binary import find_binary
from tidings.engine import Engine
from tidings.engines.nats import Address, NatsEngine

_PATIENCE = 20.0


class NatsServer:
    """A plain nats-server with JetStream that fsyncs every write, below one directory."""

    def __init__(self, directory: Path) -> None:
        self.port = -1  # any free one; the same again after a restart
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Return when it takes connections."""
        ports = self._directory / "ports"
        ports.mkdir(parents=True, exist_ok=True)
        config = self._directory / "server.conf"
        config.write_text(
            f"listen: 127.0.0.1:{self.port}\n"
            f"ports_file_dir: {json.dumps(str(ports))}\n"
            f"jetstream {{ store_dir: {json.dumps(str(self._directory / 'data'))}, sync_interval: always }}\n"
        )
        with (self._directory / "server.log").open("ab") as log:
            command = [str(find_binary().path), "-c", str(config)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        written = ports / f"nats-server_{self._process.pid}.ports"
        deadline = time.monotonic() + _PATIENCE
        while not (written.exists() and written.read_text().strip()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server did not start: {(self._directory / 'server.log').read_text()[-2000:]}")
            await asyncio.sleep(0.01)
        self.port = int(json.loads(written.read_text())["nats"][0].rpartition(":")[2])

    def kill(self) -> None:
        """End it as hard as can be."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class NatsWorld:
    """One server with one namespace; its time is real."""

    lease = 1.2
    moment = 0.25

    def __init__(self, directory: Path) -> None:
        self._clock = SystemClock()
        self._server = NatsServer(directory)
        self._engines: list[NatsEngine] = []

    @property
    def clock(self) -> Clock:
        return self._clock

    async def __aenter__(self) -> NatsWorld:
        await self._server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            for engine in self._engines:
                await engine.close()
        finally:
            self._server.kill()

    async def engine(self) -> Engine:
        engine = NatsEngine(self._locate, namespace="conformance", roots=("events.>",), clock=self._clock)
        self._engines.append(engine)
        await engine.open()
        return engine

    async def crash(self, engine: Engine) -> None:
        assert isinstance(engine, NatsEngine)
        await engine.abandon()

    async def restart(self) -> None:
        self._server.kill()
        await self._server.start()

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _locate(self) -> Address:
        return Address((f"nats://127.0.0.1:{self._server.port}",))
