"""A connection that comes back: it reconnects, restores subscriptions, and matches answers to questions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from ...errors import Closed, EngineError, EngineUnavailable, NotAllowed, StoreFull, TooLarge
from .answers import Answers, OnAnswer, settle
from .connection import BACKLOG, Address, CoreConnection, Frame, OnDenied, OnFrame, OnLost, connect_nats_py
from .outbound import Parcel, lines_of
from .subscriptions import Subscription, Subscriptions

log = logging.getLogger("tidings.engines.nats")

Locate: TypeAlias = Callable[[], Awaitable[Address]]
"""Where the servers are now. Asked again whenever the connection is lost, so that a moved broker is found."""
Connector: TypeAlias = Callable[[str, Address, str, OnLost, OnDenied], Awaitable[CoreConnection]]

MAX_CONTROL_LINE: Final = 4096
_PAUSES: Final = (0.05, 0.1, 0.2, 0.3, 0.5)
_WATCH: Final = 1.0
_LAST_WORD: Final = 2.0
_AGAIN: Final = 0.2
_REST: Final = 0.02
_PINGS: Final = 5
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')
_ALLOW = "`tidings doctor --permissions` prints what each user has to be allowed"


class Disconnected(EngineUnavailable):
    """The connection is lost at the moment, or was while an answer was awaited."""


class Denied(NotAllowed):
    """The server does not let this user do that."""

    def __init__(self, subject: str) -> None:
        super().__init__(
            f"the NATS user of this connection may not publish to {subject!r}: {_ALLOW}; "
            "give it that, use another user, or have a worker do it"
        )
        self.subject = subject


class Link:
    """Reconnects for as long as it is open. Nothing is kept for later: what cannot be sent raises `Disconnected`."""

    def __init__(self, locate: Locate, *, name: str = "tidings", connector: Connector = connect_nats_py) -> None:
        self.inbox = ""
        """Prefix of the reply subjects of this connection; stands after the first connect."""
        self.generation = 0
        """Rises with each connection: what was asked of an older one is gone."""
        self.last_problem = ""
        self._trying = ""
        self._deaf = False
        """Whether the server refused the subscription on our reply subjects."""
        self._locate = locate
        self._connector = connector
        self._name = name
        self._connection: CoreConnection | None = None
        self._subscriptions = Subscriptions()
        self._answers = Answers()
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._known: tuple[str, ...] = ()
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self._beside: set[asyncio.Task[None]] = set()
        self._on_connect: list[Callable[[], None]] = []
        self._max_payload = 1024 * 1024

    @property
    def connected(self) -> bool:
        return self._up.is_set() and self._connection is not None and self._connection.alive

    @property
    def max_payload(self) -> int:
        return self._max_payload

    @property
    def server(self) -> str:
        """The address that answers, or answered last."""
        return self._connection.server if self._connection else ""

    @property
    def identity(self) -> str:
        """Of the server process that answers; empty while none does."""
        return self._connection.identity if self._connection else ""

    @property
    def alone(self) -> bool:
        """Whether one server that is in no cluster is all there is; see `CoreConnection.alone`."""
        return self._connection is not None and self._connection.alone

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Call after each connect, when the subscriptions stand again, and after each loss."""
        self._on_connect.append(callback)

    async def open(self, patience: float) -> None:
        """Connect. Raises `EngineUnavailable` after `patience` seconds."""
        self._closed = False
        self._up.clear()
        self._subscriptions = Subscriptions()
        self.inbox = ""
        self._task = asyncio.create_task(self._run(), name="tidings nats link")
        await self.ready(patience)

    async def ready(self, patience: float) -> None:
        """Wait until connected. Raises `EngineUnavailable` after `patience` seconds, `Closed` after `close`, and
        `StoreFull` at once while the server is known to be stopped for want of space."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while not self.connected:
            await _first(max(until - loop.time(), 0.0), self._up, self._full)
            # A connection can be lost again before those who waited for it run: then they wait on.
            if self._closed or self._up.is_set() or self._full.is_set() or loop.time() >= until:
                break
        if self._closed:
            raise Closed("the engine was closed")
        if not self._up.is_set():
            if self._full.is_set():
                raise StoreFull(self.last_problem)
            raise EngineUnavailable(self._nobody())

    async def close(self) -> None:
        """Fail all that waits with `Closed`, send what is written, disconnect."""
        if self._closed:
            return
        self._closed = True
        if self._connection is not None and self.connected:
            with contextlib.suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(_LAST_WORD):
                    await self._connection.ping()
        await self._end("the engine was closed")

    async def abandon(self) -> None:
        """Disconnect as a killed process does: nothing is sent any more."""
        self._closed = True
        await self._end("the engine was abandoned")

    async def _end(self, why: str) -> None:
        pending = {*self._beside, *([self._task] if self._task else [])}
        while pending:
            # Once is not enough: in the middle of connecting nats-py takes a cancel for its own and goes on.
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=_AGAIN)
        self._drop(Closed(why))
        self._up.set()
        await asyncio.gather(*self._closing)

    async def publish(
        self, subject: str, body: bytes = b"", headers: Mapping[str, str] | str | None = None, reply: str = ""
    ) -> None:
        """Send now or raise `Disconnected`. Raises `TooLarge` for what would make the server hang up. Headers may be
        given as lines."""
        parcel = self.parcel(subject, body, headers, reply)
        if self.crowded:
            await self.room()
        self.send((parcel,))

    def parcel(
        self, subject: str, body: bytes, headers: Mapping[str, str] | str | None = None, reply: str = ""
    ) -> Parcel:
        """A message for `send`. Raises what `publish` raises."""
        connection = self._usable()
        lines = headers if isinstance(headers, str) else lines_of(headers)
        size = len(body) + (len(lines if lines.isascii() else lines.encode()) + 12 if lines else 0)
        if size > connection.max_payload:
            raise TooLarge(size, connection.max_payload)
        if len(subject) + len(reply) > MAX_CONTROL_LINE - 64:
            raise TooLarge(len(subject), MAX_CONTROL_LINE - 64)
        return subject, reply, lines, body

    @property
    def crowded(self) -> bool:
        """Whether so much is unsent that who sends more should wait for `room`."""
        return self._connection is not None and self._connection.waiting > BACKLOG

    async def room(self) -> None:
        """Returns when what is unsent is no longer too much. Raises `Disconnected`."""
        connection = self._usable()
        try:
            await connection.room()
        except Exception as error:
            raise Disconnected(f"{connection.server}: {error}") from error

    def send(self, parcels: Sequence[Parcel]) -> None:
        """Send many in one write, now, or raise `Disconnected`. The caller has checked their sizes, and bounds what
        is on its way."""
        connection = self._usable()
        try:
            connection.send(parcels)
        except Exception as error:
            raise Disconnected(f"{connection.server}: {error}") from error

    def send_soon(self, parcel: Parcel) -> None:
        """`send` one together with others of this turn of the event loop."""
        connection = self._usable()
        try:
            connection.send_soon(parcel)
        except Exception as error:
            raise Disconnected(f"{connection.server}: {error}") from error

    def send_each(self, subjects: Sequence[str], body: bytes) -> None:
        """`send` a short body to many subjects."""
        connection = self._usable()
        try:
            connection.send_each(subjects, body)
        except Exception as error:
            raise Disconnected(f"{connection.server}: {error}") from error

    def expect(self, subject: str, arrived: OnAnswer) -> str:
        """The reply subject for a question to `subject`: what comes there is handed to `arrived`, and so is
        `Disconnected` or `Denied`, until `forget`."""
        return f"{self.inbox}.a.{self._answers.expect(subject, arrived)}"

    def forget(self, reply: str) -> None:
        """Wait no more for what was expected there."""
        self._answers.forget(reply.rpartition(".")[2])

    async def ask(
        self, subject: str, body: bytes = b"", headers: Mapping[str, str] | str | None = None
    ) -> asyncio.Future[Frame]:
        """Send a question; the future gets the first answer, `Disconnected` when it is lost on the way, or `Denied`."""
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        reply = self.expect(subject, partial(settle, future))
        future.add_done_callback(lambda _: self.forget(reply))
        try:
            await self.publish(subject, body, headers, reply)
        except BaseException:
            future.cancel()
            raise
        return future

    async def request(
        self, subject: str, body: bytes = b"", headers: Mapping[str, str] | str | None = None, timeout: float = 5.0
    ) -> Frame:
        """`ask` and wait. Raises `TimeoutError`, `Disconnected`, `Denied`."""
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        alone = not self._answers
        number = self._answers.expect(subject, partial(settle, future), timeout)
        try:
            parcel = self.parcel(subject, body, headers, f"{self.inbox}.a.{number}")
            if self.crowded:
                await self.room()
            if alone:
                self.send((parcel,))
            else:
                self.send_soon(parcel)  # others who had their answers in this turn ask again
            return await future
        finally:
            self._answers.forget(number)

    async def collect(
        self, subject: str, body: bytes, is_last: Callable[[Frame], bool], timeout: float
    ) -> tuple[list[Frame], bool]:
        """All answers to one question until `is_last`, or for `timeout` seconds; and whether the last one came."""
        frames: list[Frame] = []
        finished: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def arrived(answer: Frame | Exception) -> None:
            if finished.done():
                return
            if isinstance(answer, Exception):
                finished.set_exception(answer)
                finished.exception()
                return
            frames.append(answer)
            if is_last(answer):
                finished.set_result(True)

        reply = self.expect(subject, arrived)
        try:
            async with asyncio.timeout(timeout):
                await self.publish(subject, body, None, reply)
                await finished
        except TimeoutError:
            return frames, False
        finally:
            self.forget(reply)
        return frames, True

    async def subscribe(self, subject: str, on_frame: OnFrame, queue: str = "") -> Subscription:
        """Take part from now on, over reconnects too; while disconnected it begins with the next connection."""
        return await self._subscriptions.add(subject, on_frame, queue)

    async def flush(self) -> None:
        """Returns when the server has read all that was sent before. Raises `Disconnected`."""
        try:
            await self._usable().ping()
        except OSError as error:
            raise Disconnected(self._nobody()) from error

    async def outlast(self, attempt: Callable[[], Awaitable[None]], patience: float) -> None:
        """Do something that may be repeated, again whenever the connection is lost in it. Raises `EngineUnavailable`
        when none has stood long enough in `patience` seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while True:
            await self.ready(max(until - loop.time(), 0.0))
            try:
                return await attempt()
            except Disconnected:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(_REST)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside; what it raises is logged. For the rare, never for each message."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside_done)

    def _beside_done(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, EngineError):
            log.debug("%s", error)
        else:
            log.error("unexpected error", exc_info=error)

    def _usable(self) -> CoreConnection:
        connection = self._connection
        if self._closed:
            raise Closed("the engine was closed")
        if connection is None or not connection.alive:
            if connection is not None:  # else the next one would be taken for lost as soon as it stands
                self._down.set()
            raise Disconnected(self._nobody())
        return connection

    def _denied(self, text: str) -> None:
        # nats-py hands the text on in lower case.
        act, denied = found.groups() if (found := _DENIED.search(text)) else ("", "")
        if act == "subscription" and denied.startswith(self.inbox.lower()):
            self._deaf = True
        if act != "publish" or not self._answers.denied(denied, Denied):
            log.warning("%s: %s", text, _ALLOW)

    def _lost(self, error: Exception | None) -> None:
        self.last_problem = str(error or "the connection was lost")
        self._down.set()

    async def _run(self) -> None:
        """Connect, watch, and connect again."""
        attempt = 0
        while True:
            try:
                await self._connect()
            except Exception as error:
                if not isinstance(error, EngineError):
                    log.exception("where the servers are could not be found out")
                self.last_problem = _telling(str(error), self.last_problem)
                if isinstance(error, StoreFull):
                    self._full.set()
                else:
                    self._full.clear()
                log.debug("not connected: %s", error)
                pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
                attempt += 1
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                continue
            attempt = 0
            await self._watch()
            log.warning("connection to %s lost: %s", self.server, self.last_problem)
            self._drop(Disconnected(f"the connection to {self.server} was lost: {self.last_problem}"))
            self._tell()

    async def _connect(self) -> None:
        address = await self._locate()
        if not self.inbox:
            self.inbox = f"{address.inbox_prefix}.{secrets.token_hex(8)}"
            await self._subscriptions.add(f"{self.inbox}.a.*", self._answers.take)
        servers = list(dict.fromkeys([*random.sample(address.servers, len(address.servers)), *self._known]))
        problems: list[str] = []
        for server in servers:
            self._down.clear()
            self._deaf, self._trying = False, server
            try:
                connection = await self._connector(server, address, self._name, self._lost, self._denied)
            except EngineUnavailable as error:
                problems.append(str(error))
                continue
            try:
                await self._subscriptions.restore(connection)
                await connection.ping()
                if self._deaf:
                    raise EngineUnavailable(f"this user may not subscribe to {self.inbox}.>, its answers: {_ALLOW}")
            except Exception as error:
                problems.append(f"{server}: {error}")
                await connection.close()
                continue
            except asyncio.CancelledError:
                self._hang_up(connection)
                raise
            self._connection = connection
            self._max_payload = connection.max_payload
            self._known = connection.known_servers
            self.generation += 1
            if self.generation > 1:
                log.info("connected again to %s", connection.server)
            self._full.clear()
            self._up.set()
            self._tell()
            return
        raise EngineUnavailable("; ".join(problems) or "no server is known")

    async def _watch(self) -> None:
        """Returns when the connection is lost."""
        connection = self._connection
        assert connection is not None
        for beat in itertools.count(1):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH):
                    await self._down.wait()
            if self._down.is_set() or not connection.alive:
                return
            if beat % _PINGS == 0:
                try:
                    await connection.ping()
                except OSError as error:
                    self._lost(error)
                    return

    def _drop(self, error: EngineUnavailable | Closed) -> None:
        connection, self._connection = self._connection, None
        self._up.clear()
        self._down.set()
        self._answers.fail(error)
        self._subscriptions.lost()
        if connection is not None:
            self._hang_up(connection)

    def _hang_up(self, connection: CoreConnection) -> None:
        """Not waited for: a broken connection can take its time, and the next one is wanted now."""
        closing = asyncio.create_task(connection.close(), name="tidings nats closing")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _tell(self) -> None:
        for callback in self._on_connect:
            callback()

    def _nobody(self) -> str:
        silent = f"{self._trying} has said nothing yet" if self._trying else "not connected"
        return (
            f"no NATS server can be used at the moment ({self.last_problem or silent}): "
            "is it running, and are address, user and password right?"
        )


def _telling(problem: str, before: str) -> str:
    """The problem to tell. A server that refuses a user says so and hangs up, and what it said is often lost on the
    way: a connection that was merely reset does not replace the reason heard at an earlier try."""
    refused = "authorization" in before.lower() and "reset by peer" in problem.lower()
    return before if refused else problem


async def _first(patience: float, *events: asyncio.Event) -> None:
    """Return when one of them is set, or after `patience` seconds."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
