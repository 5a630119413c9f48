"""One core NATS connection: what this engine asks of a client library, and nats-py as that library.

A `CoreConnection` lives once: it is connected when it is made, and when it is lost it is thrown away and `Link` makes
another. So nothing that was given to a lost connection is ever sent later by surprise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from ...errors import EngineUnavailable

log = logging.getLogger("tidings.engines.nats")

CONNECT_TIMEOUT: Final = 3.0
PING_TIMEOUT: Final = 5.0
"""Seconds without an answer to a ping after which a connection counts as lost."""
BACKLOG: Final = 4 * 1024 * 1024
"""Bytes waiting to be written above which a writer has to wait."""


class Address(msgspec.Struct, frozen=True):
    """Where the servers are, and as whom to come."""

    servers: tuple[str, ...]
    """URLs, `nats://host:port` or `tls://host:port`."""
    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"Address({', '.join(self.servers)}, user={self.user!r})"


class Frame(msgspec.Struct):
    """One message as it came over the connection."""

    subject: str
    reply: str
    headers: Mapping[str, Any] | None
    """As the sender wrote them, also odd ones; a status of the server stands under `Status` and `Description`."""
    body: bytes

    @property
    def status(self) -> str:
        """Three digits for what the server itself says (`404`, `503` ...), empty for a message."""
        if self.headers is None or self.body:
            return ""
        return str(self.headers.get("Status", ""))

    def header(self, name: str) -> str:
        """One header as text, empty when it is not there."""
        value = self.headers.get(name, "") if self.headers else ""
        return str(value[0] if isinstance(value, list) and value else value)


OnFrame: TypeAlias = Callable[[Frame], None]
OnLost: TypeAlias = Callable[[Exception | None], None]
OnDenied: TypeAlias = Callable[[str], None]


class Subscribed(Protocol):
    """An open subscription of one connection."""

    async def close(self) -> None: ...


class CoreConnection(Protocol):
    """What is needed of a NATS client library. Subjects, headers and sizes have been checked by the caller."""

    server: str
    """The address that answered, without password."""
    known_servers: tuple[str, ...]
    """Further servers of the cluster, as URLs."""
    max_payload: int

    @property
    def alive(self) -> bool: ...

    async def publish(self, subject: str, body: bytes, headers: dict[str, str] | None, reply: str) -> None:
        """Hand to the connection; returns before it is sent, but waits while too much is unsent."""
        ...

    async def subscribe(self, subject: str, queue: str, on_frame: OnFrame) -> Subscribed: ...

    async def ping(self) -> None:
        """Returns when the server has read all that was published before. Raises `OSError` when it does not."""
        ...

    async def close(self) -> None:
        """Write what is left and disconnect; never raises, takes some seconds at most."""
        ...


class NatsPy:
    """`CoreConnection` over nats-py, whose own reconnecting is never used."""

    def __init__(self, client: Client, server: str, known_servers: tuple[str, ...]) -> None:
        self.server = server
        self.known_servers = known_servers
        self.max_payload = client.max_payload
        self._client = client
        self._subscriptions: set[_Subscription] = set()
        self._ping: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self._client.is_connected

    async def publish(self, subject: str, body: bytes, headers: dict[str, str] | None, reply: str) -> None:
        while self._client.pending_data_size > BACKLOG:
            await self.ping()
        await self._client.publish(subject, body, reply, headers)

    async def subscribe(self, subject: str, queue: str, on_frame: OnFrame) -> Subscribed:
        async def receive(message: Msg) -> None:
            try:
                on_frame(Frame(message.subject, message.reply, message.headers, message.data))
            except Exception:
                log.exception("a message on %s could not be taken in", message.subject)

        # Without limits: nats-py throws messages away above them.
        raw = await self._client.subscribe(
            subject, queue=queue, cb=receive, pending_msgs_limit=0, pending_bytes_limit=0
        )
        subscription = _Subscription(self, raw)
        self._subscriptions.add(subscription)
        return subscription

    async def ping(self) -> None:
        # Callers share one round trip only if it has not begun: what they wrote must stand before the PING.
        # It runs in a task of its own, because nats-py's reader dies of a PONG whose waiter was cancelled.
        task = asyncio.ensure_future(self._client.flush(timeout=PING_TIMEOUT))  # type: ignore[arg-type]
        task.add_done_callback(_retrieve)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise ConnectionError(f"{self.server} does not answer: {error}") from error

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            await subscription.close()
        try:
            async with asyncio.timeout(2.0):
                await self._client.close()
        except Exception as error:
            # A connection that is broken anyway: nats-py tries to write what is left.
            log.debug("closing the connection to %s: %s", self.server, error)


class _Subscription:
    def __init__(self, connection: NatsPy, raw: Any) -> None:
        self._connection = connection
        self._raw = raw

    async def close(self) -> None:
        self._connection._subscriptions.discard(self)
        with contextlib.suppress(Exception):
            await self._raw.unsubscribe()
        # nats-py leaves the reading task behind when the connection was closed by an error.
        task = getattr(self._raw, "_wait_for_msgs_task", None)
        if task is not None:
            task.cancel()


def _retrieve(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()


async def connect_nats_py(server: str, address: Address, name: str, on_lost: OnLost, on_denied: OnDenied) -> NatsPy:
    """Connect to one server. Raises `EngineUnavailable` saying why not."""
    client = Client()
    problems: list[Exception] = []
    opened = released = False
    parked = asyncio.Event()

    async def on_error(error: Exception) -> None:
        if "permissions violation" in str(error):
            on_denied(str(error))
            return
        problems.append(error)
        log.debug("%s: %s", server, error)

    async def on_disconnect() -> None:
        # nats-py would now reconnect by itself: it is held here until `close` has ended it.
        if opened and not released:
            on_lost(problems[-1] if problems else None)
            await parked.wait()

    def user() -> str:
        if server.startswith("tls://") and not client._server_info.get("tls_required"):
            raise ssl.SSLError("the server offers no TLS although the URL begins with tls://")
        return address.user or ""

    login: dict[str, Any] = {}
    if address.user is not None:
        login = {"user": user, "password": address.password or ""}
    try:
        async with asyncio.timeout(2 * CONNECT_TIMEOUT):
            await client.connect(
                [server],
                name=name,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                connect_timeout=CONNECT_TIMEOUT,  # type: ignore[arg-type]
                reconnect_time_wait=0,
                max_reconnect_attempts=1,
                ping_interval=5,
                max_outstanding_pings=2,
                pending_size=-1,
                tls=ssl.create_default_context() if server.startswith("tls://") else None,
                **login,
            )
    except Exception as error:
        cause = problems[-1] if problems else error
        raise EngineUnavailable(f"{server}: {str(cause) or type(cause).__name__}") from error
    opened = True
    scheme = urlsplit(server).scheme or "nats"
    known = tuple(f"{scheme}://{found.netloc}" for found in client.discovered_servers)
    connection = NatsPy(client, server, known)
    close = connection.close

    async def release_and_close() -> None:
        nonlocal released
        released = True
        parked.set()
        await close()

    connection.close = release_and_close  # type: ignore[method-assign]
    return connection
