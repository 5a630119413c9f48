"""Engines by URL. Each engine's package is imported only when its URL is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError, MissingExtra, NoNamespace
from ..permissions import User

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from ..clock import Clock
    from ..engine import Engine
    from .memory import MemoryStore
    from .nats.streams import Mode
    from .redis import Address as RedisAddress

Durability = Literal["checked", "always", "everysec", "none"]

_KINDS = "embedded:, nats://host/namespace, tls://host/namespace, redis://host/namespace or memory:"
_REDIS = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
"""Schemes, and whether they mean TLS."""
_DURABILITIES: tuple[Durability, ...] = ("always", "everysec", "none")


@dataclass(frozen=True)
class Place:
    """An engine's URL, understood."""

    kind: Literal["embedded", "nats", "redis", "memory"]
    namespace: str
    directory: Path | None = None
    """Embedded: where the broker lives; None for the project's `.tidings`."""
    servers: tuple[str, ...] = ()
    user: str | None = None
    password: str | None = None
    replicas: int | None = None
    """NATS: copies that a new namespace is kept in; None is three in a cluster, one on a single server."""
    database: int = 0
    """Redis: the number of the database."""
    durability: Durability = "checked"
    """Redis: what to believe of a server that may not be asked how it keeps what it is given; else it is asked."""

    @property
    def shown(self) -> str:
        """The URL without its password."""
        if self.kind in ("nats", "redis"):
            return f"{','.join(self.servers)}/{self.namespace}"
        return f"{self.kind}:{self.directory or ''}"


def parse(url: str, namespace: str = "") -> Place:
    """Understand an engine's URL; `namespace` wins over the URL's path. Raises `ConfigError`."""
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        return Place("memory", namespace or "tidings")
    if scheme == "embedded":
        path = rest.removeprefix("//")
        return Place("embedded", namespace or "tidings", Path(path).expanduser() if path else None)
    if scheme in ("nats", "tls"):
        return _parse_nats(url, scheme, namespace)
    if scheme in _REDIS:
        return _parse_redis(url, namespace)
    raise ConfigError(f"the URL {mask(url)!r} names no engine: write {_KINDS}")


def _parse_nats(url: str, scheme: str, namespace: str) -> Place:
    # Several hosts stand in one URL, separated by commas: nats://user:password@one,two:4223/namespace?replicas=3
    url, _, options = url.partition("?")
    if not url.startswith(f"{scheme}://"):
        raise ConfigError(
            f"the URL {mask(url)!r} has no {scheme}:// in front of its host: {scheme}://host:4222/namespace"
        )
    address, _, path = url.removeprefix(f"{scheme}://").partition("/")
    login, at, hosts = address.rpartition("@")
    user, _, password = login.partition(":")
    servers = tuple(f"{scheme}://{host}" for host in filter(None, hosts.split(",")))
    if not servers:
        raise ConfigError(f"the URL {mask(url)!r} names no host: write {scheme}://host:4222/namespace")
    for server in servers:
        try:
            port_is_number = urlsplit(server).port is not False
        except ValueError:
            port_is_number = False
        if not port_is_number:
            raise ConfigError(f"the URL {mask(url)!r}: the port of {server!r} is not a number")
    name = namespace or path.strip("/") or "tidings"
    return Place(
        "nats",
        name,
        servers=servers,
        user=unquote(user) if at else None,
        password=unquote(password) if at else None,
        replicas=_replicas(options) if options else None,
    )


def _parse_redis(url: str, namespace: str) -> Place:
    # redis://user:password@host:6379/namespace?durability=always; a path that is a number is a database, as everywhere
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        raise ConfigError(f"the URL {mask(url)!r}: the port is not a number") from None
    if not host or "," in parts.netloc.rpartition("@")[2]:
        raise ConfigError(f"the URL {mask(url)!r} names no single host: write {parts.scheme}://host:6379/namespace")
    path = [part for part in parts.path.split("/") if part]
    database = int(path.pop(0)) if path and path[0].isdecimal() else 0
    host = f"[{host}]" if ":" in host else host
    return Place(
        "redis",
        namespace or "/".join(path) or "tidings",
        servers=(f"{'rediss' if _REDIS[parts.scheme] else 'redis'}://{host}:{port}",),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=database,
        durability=_durability(parts.query) if parts.query else "checked",
    )


def _durability(options: str) -> Durability:
    name, _, value = options.partition("=")
    for known in _DURABILITIES:
        if (name, value) == ("durability", known):
            return known
    raise ConfigError(
        f"the URL's option {options!r} is not known: write ?durability=always, ?durability=everysec or ?durability=none"
    )


def _replicas(options: str) -> int:
    name, _, value = options.partition("=")
    if name != "replicas" or value not in ("1", "3", "5"):
        raise ConfigError(f"the URL's option {options!r} is not known: write ?replicas=1, ?replicas=3 or ?replicas=5")
    return int(value)


def mask(url: str) -> str:
    """A URL without its password, for every print."""
    head, at, tail = url.rpartition("@")
    if not at or "://" not in head:
        return url
    scheme, _, login = head.partition("://")
    return f"{scheme}://{login.partition(':')[0]}:***@{tail}"


def redis_address(place: Place) -> RedisAddress:
    """Where the Redis engine finds its server. Raises `MissingExtra` where its driver is not installed."""
    try:
        from .redis import Address
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise MissingExtra("The Redis driver redis-py", "redis") from error

    server = urlsplit(place.servers[0])
    return Address(
        server.hostname or "",
        server.port or 6379,
        place.user,
        place.password,
        tls=server.scheme == "rediss",
        database=place.database,
        durability=place.durability,
    )


async def connect(
    place: Place,
    stack: AsyncExitStack,
    *,
    roots: tuple[str, ...],
    clock: Clock,
    store: MemoryStore | None = None,
    user: User = "work",
    mode: Mode = "extend",
) -> Engine:
    """Open the engine of a place; leaving `stack` closes it, and gives up the embedded broker after it.

    Who only looks says so with `mode="look"`: where nothing was ever made nothing is made, it raises `NoNamespace`.
    """
    engine: Any
    if place.kind == "memory":
        from .memory import MemoryEngine, MemoryStore

        engine = MemoryEngine(store or MemoryStore(clock))
    elif place.kind == "redis":
        address = redis_address(place)
        from .redis import RedisEngine

        engine = RedisEngine(address, namespace=place.namespace, roots=roots, clock=clock, mode=mode)
    else:
        from .nats import Address, NatsEngine

        if place.kind == "embedded":
            from .. import embedded

            directory = place.directory or embedded.project_directory()
            if mode == "look" and not embedded.has_run(directory):
                raise NoNamespace(f"no broker has run in {directory} yet: start the system, or publish something")
            broker = await embedded.start(directory, user=user)
            stack.push_async_callback(broker.close)

            async def locate() -> Address:
                found = await broker.locate()
                servers = (f"nats://{found.host}:{found.port}",)
                return Address(servers, found.user, found.password, found.inbox_prefix)

        else:

            async def locate() -> Address:
                return Address(place.servers, place.user, place.password)

        engine = NatsEngine(
            locate,
            namespace=place.namespace,
            roots=roots,
            clock=clock,
            replicas=place.replicas,
            mode=mode,
            fsyncs=True if place.kind == "embedded" else None,
        )
    stack.push_async_callback(engine.close)
    await engine.open()
    return engine  # type: ignore[no-any-return]
