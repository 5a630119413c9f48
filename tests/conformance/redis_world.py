"""The Redis engine as a world: one server for all cases, a namespace for each."""

from __future__ import annotations

import asyncio
import itertools

from msgspec.structs import replace

from conformance.redis_wire import frames, is_receipt
from redis_server import RedisServer
from tidings.clock import Clock, SystemClock
from tidings.conformance import Link
from tidings.conformance.proxy import Proxy
from tidings.engine import Engine
from tidings.engines.redis import Address, RedisEngine

_numbers = itertools.count(1)


class RedisWorld:
    """One namespace on a server; its time is real."""

    lease = 0.8
    moment = 0.2

    def __init__(self, server: RedisServer) -> None:
        self._clock = SystemClock()
        self._server = server
        self._namespace = f"conformance{next(_numbers)}"
        self._limit = -1
        self._engines: list[RedisEngine] = []
        self._proxies: list[Proxy] = []

    @property
    def clock(self) -> Clock:
        return self._clock

    async def __aenter__(self) -> RedisWorld:
        if not self._server.running:
            await self._server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.thaw()
        await asyncio.gather(*(engine.close() for engine in self._engines), return_exceptions=True)
        for proxy in self._proxies:
            await proxy.close()
        if self._server.running:
            await self._server.ask("FLUSHALL")

    async def engine(self, *, patience: float | None = None) -> Engine:
        return await self._open(self._server.address, patience)

    async def linked(self, *, patience: float | None = None) -> tuple[Engine, Link]:
        proxy = Proxy(self._living, frames, is_receipt)
        await proxy.start()
        self._proxies.append(proxy)
        return await self._open(replace(self._server.address, port=proxy.port), patience), proxy

    async def _open(self, address: Address, patience: float | None) -> RedisEngine:
        engine = RedisEngine(
            address, namespace=self._namespace, clock=self._clock, timeout=patience or 10.0, limit=self._limit
        )
        self._engines.append(engine)
        await engine.open()
        return engine

    async def _living(self) -> tuple[str, int]:
        if not self._server.running:
            raise ConnectionRefusedError
        return "127.0.0.1", self._server.port

    async def crash(self, engine: Engine) -> None:
        assert isinstance(engine, RedisEngine)
        await engine.abandon()

    async def restart(self) -> None:
        await self._server.restart()

    async def fail_over(self) -> None:
        await self._server.restart()

    async def kill(self) -> None:
        self._server.kill()

    async def start(self) -> None:
        await self._server.start()

    async def freeze(self) -> None:
        self._server.freeze()

    async def thaw(self) -> None:
        self._server.thaw()

    async def lose_group(self, group: str) -> None:
        """All that the server keeps for a group: what it still waits for stands in the log only."""
        tag = f"{{{self._namespace}}}"
        parts = ("shape", "fill", "fresh", "ready", "leased", "delayed", "parked", "items", "copies", "dead", "letters")
        await self._server.ask("DEL", *(f"{tag}:g:{group}:{part}" for part in parts))

    async def limit(self, size: int) -> None:
        self._limit = size

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def spread(self) -> None:
        """There is one server, and it knows."""
