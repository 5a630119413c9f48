"""The NATS engine as a world: the embedded broker's server for each case, or one cluster of three for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

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
from tidings.engines.nats.connection import OnFrame
from tidings.engines.nats.link import Link as Connection
from tidings.engines.nats.link import Locate

NODES = 3
_numbers = itertools.count(1)


class Servers:
    """What keeps the messages of a world."""

    def __init__(self, nodes: list[NatsServer], user: str | None = None, password: str | None = None) -> None:
        self.nodes = nodes
        self.login = (user, password)

    async def start(self) -> None:
        """Start those that do not run, at the same time."""
        await asyncio.gather(*(node.start() for node in self.nodes if not node.running))

    async def fail(self, stream: str, *, leader: bool) -> None:
        """Kill the one that leads the stream, or one that does not, and start it again."""
        await self.nodes[0].restart()

    async def leave(self, *streams: str) -> None:
        """The case is over: keep nothing of these streams."""
        self.kill()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    async def spread(self) -> None:
        """See `World.spread`."""

    async def locate(self) -> Address:
        return Address(tuple(node.url for node in self.nodes), *self.login)

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[JetStream]:
        """The servers' own API, beside any engine."""
        connection = Connection(self.locate, name="conformance")
        await connection.open(20.0)
        try:
            yield JetStream(connection, 20.0)
        finally:
            await connection.close()


class Broker(Servers):
    """One server, told what the embedded broker is told, used as its workers use it."""

    def __init__(self, directory: Path) -> None:
        layout = Layout.of(directory)
        for needed in (layout.run, layout.data):
            needed.mkdir(parents=True)
        passwords = credentials(layout, create=True)
        told: dict[str, Any] = server_config(layout, BrokerSettings(), passwords, None)
        kept = ("max_payload", "system_account", "accounts", "jetstream", "write_deadline")
        super().__init__([NatsServer(directory, **{name: told[name] for name in kept})], "work", passwords["work"])


class Cluster(Servers):
    """Three servers that keep three copies of everything, for as long as the tests run."""

    def __init__(self, directory: Path) -> None:
        ports = _free_ports(NODES)
        routes = [f"nats://127.0.0.1:{port}" for port in ports]
        super().__init__(
            [
                NatsServer(
                    directory / f"n{number}",
                    server_name=f"n{number}",
                    # Clients are told of no other server: they would find a way around the proxy.
                    cluster={"name": "c", "listen": f"127.0.0.1:{port}", "routes": routes, "no_advertise": True},
                )
                for number, port in enumerate(ports)
            ]
        )

    async def start(self) -> None:
        await super().start()
        async with self.api() as js:
            await js.call("INFO", timeout=40.0)  # answered when the cluster has a leader

    async def fail(self, stream: str, *, leader: bool) -> None:
        async with self.api() as js:
            leading = (await js.stream(stream))["cluster"]["leader"]
        await next(node for node in self.nodes if (node.directory.name == leading) is leader).restart()

    async def spread(self) -> None:
        # What a server says of its subscribers reaches the others in the order in which they came: so wait for some
        # of our own, that come last.
        links = [Connection(node.locate, name="conformance") for node in self.nodes if node.running]
        name, heard = f"spread{next(_numbers)}", set[tuple[int, int]]()
        missing = {(to, by) for to in range(len(links)) for by in range(len(links))}

        def listener(to: int) -> OnFrame:
            return lambda frame: heard.add((to, int(frame.body)))

        async with AsyncExitStack() as stack:
            for to, link in enumerate(links):
                stack.push_async_callback(link.close)
                await link.open(20.0)
                await link.subscribe(f"{name}.{to}", listener(to))
            while missing := missing - heard:
                for to, by in missing:
                    await links[by].publish(f"{name}.{to}", b"%d" % by)
                await asyncio.gather(*(link.flush() for link in links))

    async def leave(self, *streams: str) -> None:
        await self.start()
        async with self.api() as js:
            for stream in streams:
                await js.call(f"STREAM.DELETE.{stream}")


class NatsWorld:
    """One namespace on some servers; its time is real."""

    lease = 1.2
    moment = 0.25

    def __init__(self, servers: Servers, *, patience: float = 10.0) -> None:
        self._clock = SystemClock()
        self._servers = servers
        self._patience = patience
        self._namespace = f"conformance{next(_numbers)}"
        self._streams = (f"{self._namespace}-events", f"{self._namespace}-control")
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
        await self._servers.leave(*self._streams)

    async def engine(self, *, patience: float | None = None) -> Engine:
        return await self._open(self._servers.locate, patience)

    async def linked(self, *, patience: float | None = None) -> tuple[Engine, Link]:
        proxy = Proxy(self._living, frames, is_receipt)
        await proxy.start()
        self._proxies.append(proxy)

        async def locate() -> Address:
            return Address((f"nats://127.0.0.1:{proxy.port}",), *self._servers.login)

        return await self._open(locate, patience), proxy

    async def _open(self, locate: Locate, patience: float | None) -> NatsEngine:
        engine = NatsEngine(
            locate, namespace=self._namespace, clock=self._clock, timeout=patience or self._patience, fsyncs=True
        )
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
        await self._servers.fail(self._streams[0], leader=False)

    async def fail_over(self) -> None:
        await self._servers.fail(self._streams[0], leader=True)

    async def kill(self) -> None:
        self._servers.kill()

    async def start(self) -> None:
        await self._servers.start()

    async def freeze(self) -> None:
        for node in self._servers.nodes:
            node.freeze()

    async def thaw(self) -> None:
        for node in self._servers.nodes:
            node.thaw()

    async def lose_group(self, group: str) -> None:
        async with self._servers.api() as js:
            for stream in self._streams:
                await js.delete_consumer(stream, group)

    async def limit(self, size: int) -> None:
        async with self._servers.api() as js:
            config = (await js.stream(self._streams[0]))["config"] | {"max_bytes": size}
            await js.call(f"STREAM.UPDATE.{self._streams[0]}", config)

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def spread(self) -> None:
        await self._servers.spread()


def _free_ports(count: int) -> list[int]:
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in listening]
    for each in listening:
        each.close()
    return ports
