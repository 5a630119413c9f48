"""What a server must be like before messages are given to it."""

from __future__ import annotations

from typing import Final

from redis.exceptions import ResponseError

from ...errors import EngineUnavailable, Unsuitable
from .address import Address
from .wire import Wire

OLDEST: Final = (7, 0)


async def probe(address: Address) -> str:
    """What answers there, name and version. Raises `EngineUnavailable` when nobody does."""
    wire = Wire(address, "tidings-probe", 3.0, lambda _wire, _error: None)
    await wire.connect()
    try:
        facts = _facts(await wire.ask("INFO", "server"))
    except ResponseError as error:
        raise EngineUnavailable(f"{address.shown} answered: {error}") from error
    finally:
        await wire.abandon()
    if valkey := facts.get("valkey_version"):
        return f"Valkey {valkey}"
    return f"Redis {facts.get('redis_version', 'of no version')}"


async def check(wire: Wire, address: Address) -> None:
    """Raise `Unsuitable` for a server that would lose messages, naming what to set."""
    facts = _facts(await wire.ask("INFO"))
    version = facts.get("valkey_version") or facts.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise Unsuitable(f"{address.shown} is version {version}: Redis from 7.0 on, or Valkey, is needed")
    if facts.get("redis_mode") == "cluster":
        raise Unsuitable(
            f"{address.shown} is part of a Redis cluster, where a namespace cannot live yet: "
            "use a server of its own, with replicas if you like"
        )
    if facts.get("role") == "slave":
        raise EngineUnavailable(f"{address.shown} is a replica and takes no writes: connect to the primary")
    if address.durability == "checked":
        await _check_durable(wire, address)


async def _check_durable(wire: Wire, address: Address) -> None:
    settings: dict[str, str] = {}
    for name in ("appendonly", "maxmemory-policy"):
        try:
            answer = await wire.ask("CONFIG", "GET", name)
        except ResponseError as error:
            raise Unsuitable(
                f"{address.shown} does not let us see its settings ({error}). If it appends to a file and has the "
                "policy noeviction, say so in the URL: ?durability=always or ?durability=everysec; or ?durability=none "
                "if messages may be lost"
            ) from error
        settings[name] = answer[1].decode() if len(answer) > 1 else ""
    if settings["appendonly"] != "yes":
        raise Unsuitable(
            f"{address.shown} keeps messages in memory only and loses them when it ends: set `appendonly yes` there "
            "(`redis-cli CONFIG SET appendonly yes`, and in its redis.conf), or accept that with ?durability=none"
        )
    if settings["maxmemory-policy"] != "noeviction":
        raise Unsuitable(
            f"{address.shown} throws keys away when its memory is full ({settings['maxmemory-policy']}): set "
            "`maxmemory-policy noeviction` there, or use a server of its own"
        )


def _facts(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, _, value in lines if value}
