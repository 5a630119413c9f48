"""One connection: questions go out in their order, and answers come in in that order.

Nothing is ever half read: an answer that nobody waits for any more is read all the same. A wire lives once; when it is
lost, `Link` makes another, and nothing that was given to the lost one is sent later by surprise.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

from ...errors import EngineUnavailable
from .address import Address
from .unreachable import why

CONNECT_TIMEOUT: Final = 3.0
PING_EVERY: Final = 4.0
"""Seconds of silence after which the server is asked whether it is there."""

Answer: TypeAlias = Any
OnLost: TypeAlias = Callable[["Wire", Exception], None]
OnPush: TypeAlias = Callable[[list[Any]], None]


class Unreachable(EngineUnavailable):
    """Nobody answers there; somebody may in a moment."""


class Disconnected(Unreachable):
    """The connection was lost before the answer came: what was asked may have been done."""


class Loading(Disconnected):
    """The server is there and reads its file; it answers when that is over."""


class Wire:
    """A connection that is made by `connect`. `within` is how long an answer may take while nothing else comes."""

    def __init__(
        self, address: Address, name: str, within: float, on_lost: OnLost, on_push: OnPush | None = None
    ) -> None:
        self._address = address
        self._within = within
        self._on_lost = on_lost
        self._on_push = on_push
        self._connection = _connection(address, name)
        self._open: deque[tuple[float, asyncio.Future[Answer] | None]] = deque()
        self._unsent: list[bytes] = []
        self._to_send = asyncio.Event()
        self._sent = asyncio.Event()
        self._heard = 0.0
        self._pinged = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self.alive = False

    async def connect(self) -> None:
        """Raises `Unreachable` while nobody answers, and `EngineUnavailable` saying what else stands in the way."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._connection.connect()
        except (RedisError, OSError, TimeoutError, ssl.SSLError) as error:
            await self._disconnect()
            refused = isinstance(error, ResponseError | AuthenticationError | ssl.SSLError)
            kind = EngineUnavailable if refused else Loading if isinstance(error, BusyLoadingError) else Unreachable
            raise kind(why(error, self._address)) from error
        except BaseException:
            await self._disconnect()
            raise
        self.alive = True
        self._sent.set()
        self._heard = _now()
        self._tasks = [
            asyncio.create_task(work(), name=f"tidings redis {work.__name__}")
            for work in (self._write, self._read, self._watch)
        ]

    def ask(self, *command: Any) -> asyncio.Future[Answer]:
        """The future answer; errors of the server are raised from it as redis-py names them."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if not self.alive:
            future.set_exception(Disconnected(f"{self._address.shown}: the connection was lost"))
            return future
        self._send(command, future)
        return future

    def tell(self, *command: Any) -> None:
        """For a wire that subscribes: what comes back comes to `on_push`."""
        if self.alive:
            self._send(command, None)

    def _send(self, command: tuple[Any, ...], future: asyncio.Future[Answer] | None) -> None:
        if future is not None:
            self._open.append((_now(), future))
        self._unsent.extend(self._connection.pack_command(*command))
        self._sent.clear()
        self._to_send.set()

    async def close(self) -> None:
        """Send what is left and disconnect; takes a second at most."""
        if self.alive and not self._sent.is_set():
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._sent.wait()
        await self.abandon()

    async def abandon(self) -> None:
        """Disconnect as a process does that is killed."""
        self.lose(Disconnected(f"{self._address.shown}: the connection was closed"), tell=False)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disconnect()

    async def _write(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await self._to_send.wait()
                self._to_send.clear()
                packed, self._unsent = b"".join(self._unsent), []
                if not self.alive:
                    return
                try:
                    await self._connection.send_packed_command(packed, check_health=False)
                except (RedisError, OSError) as error:
                    self.lose(error)
                    return
                if not self._unsent:
                    self._sent.set()

    async def _read(self) -> None:
        while True:
            try:
                answer = await self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
            except ResponseError as error:
                answer = error
            except (RedisError, OSError) as error:
                self.lose(error)
                return
            except asyncio.CancelledError:
                return
            self._heard = _now()
            if self._on_push is not None:
                self._on_push(answer)
            else:
                self._resolve(answer)

    def _resolve(self, answer: Answer) -> None:
        if not self._open:
            self.lose(ConnectionError("an answer came that nobody had asked for"))
            return
        _, future = self._open.popleft()
        if future is None or future.done():
            return
        if isinstance(answer, ResponseError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    async def _watch(self) -> None:
        """A connection that carries nothing any more without saying so is given up. Silence counts when it is seen
        twice: this process may have been busy with something else, and the answer may have come in meanwhile."""
        suspected = False
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(min(self._within / 4, 1.0))
                now = _now()
                asked = self._open[0][0] if self._open else self._pinged
                silent = asked > self._heard or bool(self._open)
                if silent and now - max(asked, self._heard) > self._within:
                    if suspected:
                        self.lose(TimeoutError(f"no answer within {self._within:.2g} s"))
                        return
                    suspected = True
                    continue
                suspected = False
                if not silent and now - self._heard > PING_EVERY:
                    self._ping()

    def _ping(self) -> None:
        self._pinged = _now()
        if self._on_push is None:
            self.ask("PING").add_done_callback(lambda done: done.cancelled() or done.exception())
        else:
            self.tell("PING")

    def lose(self, error: Exception, *, tell: bool = True) -> None:
        """Give it up: all that is open fails with `Disconnected`."""
        if not self.alive:
            return
        self.alive = False
        kind = Loading if isinstance(error, BusyLoadingError) else Disconnected
        for _, future in self._open:
            if future is not None and not future.done():
                future.set_exception(kind(f"{self._address.shown}: {error}"))
        self._open.clear()
        if tell:
            self._on_lost(self, error)

    async def _disconnect(self) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._connection.disconnect(nowait=True)


def _connection(address: Address, name: str) -> Any:
    """redis-py's connection, whose retries are off: what may be repeated is decided where it is known."""
    known: dict[str, Any] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True} if address.tls else {}
    return (SSLConnection if address.tls else Connection)(
        host=address.host,
        port=address.port,
        db=address.database,
        username=address.user,
        password=address.password,
        client_name=name,
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=CONNECT_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        **known,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
