"""The NATS engine as a world: the embedded broker's server for each case, or one cluster of three for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from pathlib import Path
from typing import Any, Protocol

from conformance.nats_wire import frames, is_receipt
from nats_server import NatsServer
from tidings.clock import Clock, SystemClock
from tidings.conformance import Link
from tidings.conformance.proxy import Proxy
from tidings.embedded.config import BrokerSettings, credentials, server_config
from tidings.embedded.locate import Layout
from tidings.engine import Engine
from tidings.engines.nats import Address, NatsEngine
from tidings.engines.nats.api import JetStream
from tidings.engines.nats.link import Link as Connection

NODES = 3
_numbers = itertools.count(1)


class Servers(Protocol):
    """What keeps the messages of a world."""

    nodes: list[NatsServer]
    login: tuple[str, str] | tuple[None, None]
    replicas: int | None

    async def start(self) -> None:
        """Start those that do not run, at the same time; returns when messages can be stored."""
        ...

    async def fail(self, control: str) -> None:
        """Kill the one that matters most (where the stream `control` has its leader), and start it again."""
        ...


class Broker:
    """One server, configured as the embedded broker is, used as its worker."""

    replicas = None

    def __init__(self, directory: Path) -> None:
        layout = Layout.of(directory)
        for needed in (layout.run, layout.data):
            needed.mkdir(parents=True)
        passwords = credentials(layout, create=True)
        told: dict[str, Any] = server_config(layout, BrokerSettings(), passwords, None)
        kept = ("max_payload", "system_account", "accounts", "jetstream", "write_deadline")
        self.nodes = [NatsServer(directory, **{name: told[name] for name in kept})]
        self.login = ("work", passwords["work"])

    async def start(self) -> None:
        if not self.nodes[0].running:
            await self.nodes[0].start()

    async def fail(self, control: str) -> None:
        await self.nodes[0].restart()


class Cluster:
    """Three servers that keep three copies of everything, for as long as the tests run."""

    login = (None, None)
    replicas = None  # the engine finds out by itself

    def __init__(self, directory: Path) -> None:
        ports = _free_ports(NODES)
        routes = [f"nats://127.0.0.1:{port}" for port in ports]
        self.nodes = [
            NatsServer(
                directory / f"n{number}",
                server_name=f"n{number}",
                # Clients are told of no other server: they would find a way around the proxy.
                cluster={"name": "c", "listen": f"127.0.0.1:{port}", "routes": routes, "no_advertise": True},
            )
            for number, port in enumerate(ports)
        ]

    async def start(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes if not node.running))
        async with asyncio.timeout(40), api_of(self) as js:
            while True:
                with contextlib.suppress(Exception):
                    await js.call("INFO", timeout=1.0)
                    return
                await asyncio.sleep(0.05)

    async def fail(self, control: str) -> None:
        async with api_of(self) as js:
            leader = (await js.stream(control))["cluster"]["leader"]
        await next(node for node in self.nodes if node.directory.name == leader).restart()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


class NatsWorld:
    """One namespace on some servers; its time is real."""

    lease = 1.2
    moment = 0.25

    def __init__(self, servers: Servers, *, patience: float = 10.0) -> None:
        self._clock = SystemClock()
        self._servers = servers
        self._patience = patience
        self._namespace = f"conformance{next(_numbers)}"
        self._engines: list[NatsEngine] = []
        self._proxies: list[Proxy] = []

    @property
    def clock(self) -> Clock:
        return self._clock

    async def __aenter__(self) -> NatsWorld:
        await self._servers.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.thaw()
        await asyncio.gather(*(engine.close() for engine in self._engines), return_exceptions=True)
        for proxy in self._proxies:
            await proxy.close()
        if isinstance(self._servers, Broker):
            self._servers.nodes[0].kill()
            return
        await self._servers.start()
        async with api_of(self._servers) as js:
            for name in (f"{self._namespace}-events", f"{self._namespace}-control"):
                await js.call(f"STREAM.DELETE.{name}")

    async def engine(self, *, patience: float | None = None) -> Engine:
        return await self._open(self._servers.nodes, patience)

    async def linked(self, *, patience: float | None = None) -> tuple[Engine, Link]:
        proxy = Proxy(self._living, frames, is_receipt)
        await proxy.start()
        self._proxies.append(proxy)
        return await self._open([proxy], patience), proxy

    async def _open(self, doors: list[NatsServer] | list[Proxy], patience: float | None) -> NatsEngine:
        async def locate() -> Address:
            return Address(tuple(f"nats://127.0.0.1:{door.port}" for door in doors), *self._servers.login)

        engine = NatsEngine(locate, namespace=self._namespace, clock=self._clock, timeout=patience or self._patience)
        self._engines.append(engine)
        await engine.open()
        return engine

    async def _living(self) -> tuple[str, int]:
        node = next((node for node in self._servers.nodes if node.running), None)
        if node is None:
            raise ConnectionRefusedError
        return "127.0.0.1", node.port

    async def crash(self, engine: Engine) -> None:
        assert isinstance(engine, NatsEngine)
        await engine.abandon()

    async def restart(self) -> None:
        await self._servers.fail(f"{self._namespace}-events")

    async def kill(self) -> None:
        for node in self._servers.nodes:
            node.kill()

    async def start(self) -> None:
        await self._servers.start()

    async def freeze(self) -> None:
        for node in self._servers.nodes:
            node.freeze()

    async def thaw(self) -> None:
        for node in self._servers.nodes:
            node.thaw()

    async def lose_group(self, group: str) -> None:
        async with api_of(self._servers) as js:
            for name in (f"{self._namespace}-events", f"{self._namespace}-control"):
                await js.delete_consumer(name, group)

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@contextlib.asynccontextmanager
async def api_of(servers: Servers):  # type: ignore[no-untyped-def]
    """The servers' own API, beside any engine."""

    async def locate() -> Address:
        return Address(tuple(node.url for node in servers.nodes), *servers.login)

    connection = Connection(locate, name="conformance")
    await connection.open(20.0)
    try:
        yield JetStream(connection, 20.0)
    finally:
        await connection.close()


def _free_ports(count: int) -> list[int]:
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in listening]
    for each in listening:
        each.close()
    return ports
