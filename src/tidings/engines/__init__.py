"""Engines by URL. Each engine's package is imported only when its URL is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError, NoNamespace
from ..permissions import User

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from ..clock import Clock
    from ..engine import Engine
    from .memory import MemoryStore
    from .nats.streams import Mode

_KINDS = "embedded:, nats://host/namespace, tls://host/namespace or memory:"


@dataclass(frozen=True)
class Place:
    """An engine's URL, understood."""

    kind: Literal["embedded", "nats", "memory"]
    namespace: str
    directory: Path | None = None
    """Embedded: where the broker lives; None for the project's `.tidings`."""
    servers: tuple[str, ...] = ()
    user: str | None = None
    password: str | None = None
    replicas: int | None = None
    """NATS: copies that a new namespace is kept in; None is three in a cluster, one on a single server."""

    @property
    def shown(self) -> str:
        """The URL without its password."""
        if self.kind == "nats":
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
    raise ConfigError(f"the URL {mask(url)!r} names no engine: write {_KINDS}")


def _parse_nats(url: str, scheme: str, namespace: str) -> Place:
    # Several hosts stand in one URL, separated by commas: nats://user:password@one,two:4223/namespace?replicas=3
    url, _, options = url.partition("?")
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
