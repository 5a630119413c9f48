"""One core NATS connection: what this engine asks of a client library, and nats-py as that library.

A `CoreConnection` lives once: it is connected when it is made, and when it is lost it is thrown away and `Link` makes
another. So nothing that was given to a lost connection is ever sent later by surprise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec
from nats.aio.client import Client

from ...errors import EngineUnavailable
from .client import LeanClient
from .headers import Block
from .outbound import Outlet, Parcel, is_known, outlet_of

log = logging.getLogger("tidings.engines.nats")

FLUSH_TIMEOUT: Final = 2.0
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
    inbox_prefix: str = "_INBOX"
    """What reply subjects begin with; a user may be given one that others cannot listen to."""

    def __repr__(self) -> str:
        return f"Address({', '.join(self.servers)}, user={self.user!r})"


class Frame(msgspec.Struct, gc=False):
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

    async def close(self) -> None:
        """Take no more, at once."""
        ...

    async def drain(self) -> None:
        """Ask for no more; returns when all that was on its way has been handed over."""
        ...


class CoreConnection(Protocol):
    """What is needed of a NATS client library. Subjects, headers and sizes have been checked by the caller."""

    server: str
    """The address that answered, without password."""
    identity: str
    """Of the server's process: another one after a restart."""
    known_servers: tuple[str, ...]
    """Further servers of the cluster, as URLs."""
    max_payload: int
    alone: bool
    """Whether this very server keeps the streams, and is in no cluster: it stores what comes over this connection in
    the order in which it was sent."""

    @property
    def alive(self) -> bool: ...

    @property
    def waiting(self) -> int:
        """Bytes that were handed over and are not sent yet."""
        ...

    def send(self, parcels: Sequence[Parcel]) -> None:
        """Hand messages to the connection, in their order and in one write; returns before they are sent."""
        ...

    def send_soon(self, parcel: Parcel) -> None:
        """`send` one, together with others of this turn of the event loop: where several send one each."""
        ...

    async def room(self) -> None:
        """Returns at once, or when what is unsent is no longer too much. Raises `OSError` when the server hears
        nothing."""
        ...

    def send_each(self, subjects: Sequence[str], body: bytes) -> None:
        """`send` one short body to many subjects: for acknowledgements."""
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

    def __init__(self, server: str, address: Address, on_lost: OnLost, on_denied: OnDenied) -> None:
        self.server = server
        self.identity = ""
        self.known_servers: tuple[str, ...] = ()
        self.max_payload = 0
        self.alone = False
        self._address = address
        self._on_lost = on_lost
        self._on_denied = on_denied
        self._lean = LeanClient(self._receive) if is_known() else None
        self._client = self._lean or Client()
        self._outlet: Outlet
        if self._lean is None:
            # nats-py builds each message by calling this, in the order of the wire, and queues nothing for what comes
            # out empty: so frames of all subscriptions keep their order, without a queue and a task for each of them.
            self._client.msg_class = self._receive_parsed  # type: ignore[assignment]
        self._receivers: dict[int, OnFrame] = {}
        self._awaited: set[asyncio.Future[None]] = set()
        self._problem: Exception | None = None
        self._open = False
        self._closed = asyncio.Event()

    async def connect(self, name: str) -> None:
        """Raises `EngineUnavailable` saying why not."""
        secure = self.server.startswith("tls://")
        login: dict[str, Any] = {}
        if self._address.user is not None:
            login = {"user": self._user, "password": self._address.password or ""}
        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                await self._client.connect(
                    [self.server],
                    name=name,
                    error_cb=self._note_error,
                    disconnected_cb=self._disconnected,
                    connect_timeout=CONNECT_TIMEOUT,  # type: ignore[arg-type]
                    reconnect_time_wait=0,
                    max_reconnect_attempts=1,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    pending_size=-1,
                    # Else it waits for ever, deaf to a cancel, when the connection is lost in the middle of a flush.
                    flush_timeout=FLUSH_TIMEOUT,
                    tls=ssl.create_default_context() if secure else None,
                    **login,
                )
        except Exception as error:
            cause = self._problem or error
            raise EngineUnavailable(f"{self.server}: {str(cause) or type(cause).__name__}") from error
        self._open = True
        self._outlet = outlet_of(self._client)
        self.max_payload = self._client.max_payload
        info = self._client._server_info
        self.identity = str(info.get("server_id", ""))
        self.alone = bool(info.get("jetstream")) and not info.get("cluster")
        scheme = "tls" if secure else "nats"
        self.known_servers = tuple(f"{scheme}://{found.netloc}" for found in self._client.discovered_servers)

    @property
    def alive(self) -> bool:
        return self._client.is_connected

    @property
    def waiting(self) -> int:
        return self._outlet.waiting

    def send(self, parcels: Sequence[Parcel]) -> None:
        self._outlet.send(parcels)

    def send_soon(self, parcel: Parcel) -> None:
        self._outlet.send_soon(parcel)

    async def room(self) -> None:
        while self._outlet.waiting > BACKLOG:
            await self.ping()

    def send_each(self, subjects: Sequence[str], body: bytes) -> None:
        self._outlet.send_each(subjects, body)

    async def subscribe(self, subject: str, queue: str, on_frame: OnFrame) -> Subscribed:
        raw = await self._client.subscribe(subject, queue)
        number = raw._id
        self._receivers[number] = on_frame
        return _Subscription(raw, lambda: self._receivers.pop(number, None), self._answered)

    async def ping(self) -> None:
        try:
            pong: asyncio.Future[Any]
            if self._lean is None:
                pong = asyncio.ensure_future(self._flush())
            else:
                pong = asyncio.get_running_loop().create_future()
                await self._lean._send_ping(pong)
            await self._answered(pong)
        except Exception as error:
            self._lost(error)
            raise ConnectionError(f"{self.server} does not answer: {str(error) or 'no answer in time'}") from error

    async def _answered(self, pong: asyncio.Future[Any]) -> None:
        """Returns with the server's answer to something; raises when it stays out, or at once when the connection is
        lost. What nats-py was given is not cancelled with the caller: its reader dies of a PONG for nobody."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(pong: asyncio.Future[Any]) -> None:
            error = None if pong.cancelled() else pong.exception()
            if error is not None:
                _fail(answered, error)
            elif not answered.done():
                answered.set_result(None)

        pong.add_done_callback(end)
        if not self._open:
            raise ConnectionError("the connection is lost")
        self._awaited.add(answered)
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await answered
        finally:
            self._awaited.discard(answered)

    async def _flush(self) -> None:
        await self._outlet.emptied()
        # Twice: nats-py writes its ping ahead of what still waits to be written, which is with the system after it.
        for _ in range(2):
            await self._client.flush(timeout=PING_TIMEOUT)  # type: ignore[arg-type]
        if not self._client.is_connected:
            # Once its reader has ended, nats-py's flush returns without having heard anything.
            raise ConnectionResetError("the connection was lost")

    async def close(self) -> None:
        self._open = False
        self._receivers.clear()
        self._end_waiting()
        try:
            async with asyncio.timeout(2.0):
                await self._client.close()
        except Exception as error:
            # A connection that is broken anyway: nats-py still tries to write what is left.
            log.debug("closing the connection to %s: %s", self.server, error)
        self._closed.set()

    def _receive(self, number: int, subject: str, reply: str, headers: bytes, body: bytes) -> None:
        if (on_frame := self._receivers.get(number)) is None:
            return
        try:
            on_frame(Frame(subject, reply, Block(headers) if headers else None, body))
        except Exception:  # nats-py's reader would end with it
            log.exception("a message on %s could not be taken in", subject)

    def _receive_parsed(self, *, subject: str, reply: str, data: bytes, headers: Any, _sid: int, **_: object) -> None:
        if (on_frame := self._receivers.get(_sid)) is None:
            return
        try:
            on_frame(Frame(subject, reply, headers, data))
        except Exception:
            log.exception("a message on %s could not be taken in", subject)

    def _user(self) -> str:
        # Asked for by nats-py before the login is sent: the last moment to keep a password off a plain connection.
        if self.server.startswith("tls://") and not self._client._server_info.get("tls_required"):
            raise ssl.SSLError("the server offers no TLS although the URL begins with tls://")
        return self._address.user or ""

    def _lost(self, error: Exception | None) -> None:
        if self._open:
            self._open = False
            self._on_lost(error)
        self._end_waiting()

    def _end_waiting(self) -> None:
        for answered in self._awaited:
            _fail(answered, ConnectionError("the connection is lost"))

    async def _note_error(self, error: Exception) -> None:
        if "permissions violation" in str(error):
            self._on_denied(str(error))
            return
        self._problem = error
        log.debug("%s: %s", self.server, error)

    async def _disconnected(self) -> None:
        if self._open:
            self._lost(self._problem)
            # nats-py would now reconnect by itself: it is held here until `close` ends it.
            await self._closed.wait()


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever waited may have gone


class _Subscription:
    def __init__(
        self, raw: Any, forget: Callable[[], object], answered: Callable[[asyncio.Future[Any]], Awaitable[None]]
    ) -> None:
        self._raw = raw
        self._forget = forget
        self._answered = answered

    async def close(self) -> None:
        self._forget()
        with contextlib.suppress(Exception):
            await self._raw.unsubscribe()

    async def drain(self) -> None:
        try:
            await self._answered(asyncio.ensure_future(self._raw.drain()))
        except Exception as error:
            log.debug("draining %s: %s", self._raw.subject, error)
        await self.close()


async def connect_nats_py(server: str, address: Address, name: str, on_lost: OnLost, on_denied: OnDenied) -> NatsPy:
    """Connect to one server. Raises `EngineUnavailable` saying why not."""
    connection = NatsPy(server, address, on_lost, on_denied)
    try:
        await connection.connect(name)
    except BaseException:
        await connection.close()
        raise
    return connection
