"""The bus: the one object an application talks to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .claims import Start
from .clock import Clock, SystemClock
from .codec import codec_for
from .connection import Connection, Connections
from .engine import Engine, Lagged
from .errors import ConfigError, PublishInTransaction
from .events import Request, require_spec, spec_of
from .handlers import Handler, HandlerOptions, filters_of
from .lifespan import Lifespan
from .live.requests import ask, ask_stream, question
from .message import encode_header
from .publisher import Receipt
from .registry import Listener, Provider, Registry
from .retry import RetryPolicy
from .running import Running
from .schedule import CatchUp, Schedule, Timing
from .settings import Settings, load, override, seconds
from .staging import SessionOutbox
from .subjects import check_filter, check_subject, matches
from .sync import SyncPublisher
from .versions import Upcaster
from .watching.receipts import Receipts
from .work.calling import in_transaction

if TYPE_CHECKING:
    from .live.gather import Gathered
    from .push import Push, User, Visible
    from .work.worker import Worker

log = logging.getLogger("tidings")

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
S = TypeVar("S", bound=Callable[[], Awaitable[object]])
U = TypeVar("U", bound=Upcaster)


class Bus:
    """Publishes events, and knows the handlers that take them.

    `name` is the application's name; it becomes the `ce-source` of what it publishes. `url` is the engine's
    (`embedded:`, `nats://…`, `memory:`; by default the setting `TIDINGS_URL`, else the embedded broker in `.tidings`
    at the project's root). `roots` are the subjects that are durable (by default
    `events.>`). `sessions` (an `async_sessionmaker`) and `sync_sessions` (a `sessionmaker`) give handlers their
    database.

    Making a bus connects to nothing. The first use connects; `lifespan`, or `async with bus:`, says when and also
    closes. A bus belongs to one event loop at a time; that of the application takes over what `publish_sync` has
    connected in a thread before.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        namespace: str | None = None,
        roots: Sequence[str] | None = None,
        sessions: Any = None,
        sync_sessions: Any = None,
        settings: Settings | None = None,
    ) -> None:
        if not name:
            raise ConfigError("a bus needs the application's name: Bus('todo')")
        self.name = name
        self.roots = load().roots if roots is None else tuple(check_filter(root) for root in roots)
        self.registry = Registry(self.roots)
        self.clock: Clock = SystemClock()
        self._given: dict[str, Any] = {"url": url, "namespace": namespace}
        self._base = settings
        self._settings: Settings | None = None
        self.sessions = [maker for maker in (sessions, sync_sessions) if maker is not None]
        self.starters: list[Callable[[], Awaitable[object]]] = []
        self._pushed: list[str] = []
        self._connections = Connections(name, lambda: Running.start(self, self._pushed))
        self._sync = SyncPublisher(self, self._connections)
        self.receipts = Receipts(self)

    # --- settings -------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings in force; read from the environment and pyproject.toml at first use."""
        if self._settings is None:
            self._settings = load(**self._given) if self._base is None else override(self._base, **self._given)
        return self._settings

    def configure(self, **settings: Any) -> None:
        """Override settings from a command line before the bus connects; None leaves one as it is."""
        self._given.update({name: value for name, value in settings.items() if value is not None})
        self._settings = None
        _ = self.settings  # a mistake raises here

    # --- handlers -------------------------------------------------------------------------------------------------

    def on(
        self,
        *what: Any,
        group: str,
        retry: RetryPolicy | None = None,
        timeout: str | float | None = None,
        concurrency: int | None = None,
        start: Start | datetime = "unclaimed",
        commit: Literal["group", "each"] = "group",
        batch: int | None = None,
        rate: str | float | None = None,
        order: bool = False,
    ) -> Callable[[F], F]:
        """Handle events, given as event classes or subject filters.

        The function's parameters are given by annotation: the event, `Message`, `Batch` (many at once), an SQLAlchemy
        session, whatever `provide` offers; any other one keeps its default. Events it returns are published when, and
        only if, it has succeeded. For the options see `HandlerOptions`.
        """
        options = HandlerOptions(group, retry, timeout, concurrency, start, commit, batch, rate, order)

        def decorate(function: F) -> F:
            self.registry.add_handler(Handler(function, what, options))
            return function

        return decorate

    def every(
        self,
        interval: str | float,
        *,
        group: str,
        catch_up: CatchUp = "latest",
        retry: RetryPolicy | None = None,
        timeout: str | float | None = None,
    ) -> Callable[[F], F]:
        """Run a function every `5m` (or so many seconds), once per due time over all processes.

        The function is a handler: it takes what handlers take, or a `Tick` that says what it runs for, and the events
        it returns are published. `group` names the schedule and is part of what is stored. The first run comes one
        interval after the first worker has started; restarts change nothing about that. Due times that passed while
        no worker ran: `catch_up="latest"` makes up for the last one, `"all"` for each, `"none"` for none that is more
        than a minute late. Runs of one process do not overlap, those of several may if one takes longer than the
        interval.
        """
        return self._scheduled(Timing.interval(interval), catch_up, HandlerOptions(group, retry, timeout, 1))

    def cron(
        self,
        expression: str,
        *,
        group: str,
        tz: str = "UTC",
        catch_up: CatchUp = "latest",
        retry: RetryPolicy | None = None,
        timeout: str | float | None = None,
    ) -> Callable[[F], F]:
        """Run a function at the times of a cron expression in a time zone; otherwise as `every`.

        `bus.cron("0 9 * * mon-fri", tz="Europe/Berlin", group="report")`: minute, hour, day of month, month, day of
        week. A time of day that a clock change skips runs at the next moment there is, one that it repeats runs the
        first time only; expressions whose minute or hour begins with `*` just go on, as in Debian's cron.
        """
        return self._scheduled(Timing.crontab(expression, tz), catch_up, HandlerOptions(group, retry, timeout, 1))

    def _scheduled(self, timing: Timing, catch_up: CatchUp, options: HandlerOptions) -> Callable[[F], F]:
        def decorate(function: F) -> F:
            self.registry.add_schedule(Schedule(function, timing, catch_up, options))
            return function

        return decorate

    def upcast(self, event: type, *, from_version: int) -> Callable[[U], U]:
        """Bring older messages of an event class up to date: the function makes the JSON object of version
        `from_version + 1` from that of `from_version`. Several steps are chained, and handlers only see the class.

        A message's version is what its `ce-type` says; a plain body published by subject has version 1, a foreign
        message without a type the current one. What the function raises makes the message a dead letter `invalid`.
        """
        spec = require_spec(event)

        def decorate(function: U) -> U:
            self.registry.upcasters.add(spec, from_version, function)
            return function

        return decorate

    def reply(self, request: type, *, timeout: str | float | None = None) -> Callable[[F], F]:
        """Answer requests of this class; replicas share them. What the function returns is the answer, what it raises
        reaches the asker as `RemoteError`. A transaction it takes is committed before the answer leaves.

        An async generator function answers with a stream of items (`bus.stream`); the time limit is for each of them.
        """
        spec = require_spec(request)
        if not spec.is_request:
            raise ConfigError(
                f"{request.__name__} is an event: handle it with @bus.on; a request derives from Request[…]"
            )

        def decorate(function: F) -> F:
            if spec.subject in self.registry.responders:
                raise ConfigError(
                    f"{spec.subject!r} is already answered by {self.registry.responders[spec.subject].name}"
                )
            self.registry.know(spec)
            self.registry.responders[spec.subject] = Handler(
                function, [request], HandlerOptions(self.name, timeout=timeout)
            )
            return function

        return decorate

    def listen(self, *channels: str, lagged: Callable[[Lagged], Any] | None = None) -> Callable[[F], F]:
        """Hear what is said on live channels while a worker of this bus runs. Every listening process hears it all;
        nothing is stored, nothing is retried, what is missed is gone.

        Where something is missing (the handler is too slow and 10,000 wait; the connection was lost for a while)
        `lagged` is called in its place with a `tidings.Lagged`, to fetch the state anew; without it the log tells.
        """
        filters = [check_filter(channel) for channel in channels]
        if not filters:
            raise ConfigError("say which channels to listen to: @bus.listen('prices.*')")

        def decorate(function: F) -> F:
            self.registry.listeners.append(Listener(Handler(function, filters, HandlerOptions("live")), lagged))
            return function

        return decorate

    def provide(self, factory: Provider) -> Provider:
        """Offer handlers values of the type that `factory`'s return annotation names. Called for each message; a
        generator's value lives until its message is done."""
        self.registry.add_provider(factory)
        return factory

    def on_start(self, function: S) -> S:
        """Call this async function whenever the bus connects, in every process and before any handler runs: to create
        tables, to warm a cache. It cannot use the bus yet. What it raises keeps the bus from starting."""
        self.starters.append(function)
        return function

    # --- publishing -----------------------------------------------------------------------------------------------

    async def publish(
        self,
        what: Any,
        body: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        delay: str | float | None = None,
        at: datetime | None = None,
        expires: str | float | None = None,
        now: bool = False,
    ) -> Receipt:
        """Store an event, given as an event object or as subject and plain body.

        Returns when the engine has it as durably as its setting says (the embedded broker: on the disk). With `delay`
        (seconds, or "5m") or `at` it is stored now and handed out then. With `expires` (from now) it is a dead letter
        `expired` in each group that has not handled it by then. A repeat with the same `id` is stored once if it says
        `delay` or `at` as the first one did, also when the time is over.

        Raises `InvalidMessage` before anything is sent, `StoreFull`, `EngineUnavailable`, and `Unconfirmed` when no
        answer came within the engine's time limit: then publish again with the receipt's id. Cancelling leaves it open
        whether the event is stored.

        Inside a handler with a transaction it raises `PublishInTransaction`, unless `now=True` says that the event
        shall leave whatever becomes of the transaction.
        """
        if in_transaction.get() and not now:
            raise PublishInTransaction
        running = await self.connect()
        message = running.publisher.compose(what, body, key=key, id=id, delay=delay, at=at, expires=expires)
        return await running.publisher.send_one(message)

    def receipt(self, id: str, *, position: int = 0) -> Receipt:
        """The receipt of something published before, from any process: `await bus.receipt(id).wait(ItemSaved)`.

        Asks nothing yet. With its `position` the message is found by one read; without, the log is walked back to the
        time that is in the id (of an id of your own making: as far as it takes).
        """
        return Receipt(id, "", position, waiting=self.receipts)

    async def cancel(self, receipt: Receipt) -> bool:
        """Take back an event published with `delay` or `at`: True if nobody gets it any more, False if there was
        nothing to take back (handed out by now, or cancelled before). Its id stays known for a while: to publish the
        event for another time, let it have a new one."""
        return await (await self.connect()).engine.cancel(receipt.subject, receipt.id)

    async def publish_many(self, events: Iterable[Any]) -> list[Receipt]:
        """Store many events in their order; faster than one `publish` after the other.

        All are checked before the first is sent. After an error some may be stored; `Unconfirmed.receipts` has the
        ids of all, to publish them again.
        """
        if in_transaction.get():
            raise PublishInTransaction
        running = await self.connect()
        return await running.publisher.send(running.publisher.compose_many(events))

    def publish_sync(self, what: Any, body: Any = None, *, timeout: str | float = 30.0, **options: Any) -> Receipt:
        """`publish` for threads and WSGI applications; takes the same options and raises the same errors.

        Inside a running event loop it raises `ConfigError`, because it would block it. Safe after a fork.
        """
        return self._sync.publish(what, body, seconds(timeout), options)

    def outbox(self, session: Any) -> SessionOutbox:
        """Publish with a transaction of your own: `await bus.outbox(session).publish(event)` writes a row into the
        session's transaction; the event leaves after your commit, or not at all. For a sync session, as in a plain
        `def` route or Flask: `bus.outbox(session).publish_sync(event)`."""
        return SessionOutbox(self.connect, self._sync.connected, session)

    # --- live -----------------------------------------------------------------------------------------------------

    async def broadcast(self, channel: str, body: Any) -> int | bool | None:
        """Say something to who listens now: how many heard it where the engine counts, else True (heard), False
        (nobody) or None (it cannot know). Not stored, and not repeated: after `EngineUnavailable` it may have been
        heard. The channel must lie outside the durable subjects."""
        check_subject(channel)
        if any(matches(root, channel) for root in self.roots):
            raise ConfigError(
                f"{channel!r} is durable: publish to it, or broadcast on a channel outside {', '.join(self.roots)}"
            )
        running = await self.connect()
        payload = body if isinstance(body, bytes) else codec_for(Any).encode(body)
        return await running.engine.broadcast(channel, payload, {"ce-source": encode_header(self.name)})

    @overload
    async def request(self, request: Request[R], *, timeout: str | float = 5.0) -> R: ...

    @overload
    async def request(self, request: Any, *, timeout: str | float = 5.0) -> Any: ...

    async def request(self, request: Any, *, timeout: str | float = 5.0) -> Any:
        """Ask, and return the typed answer.

        Raises `NoResponder` at once when nobody answers such requests, `RequestTimeout` after `timeout` seconds,
        `RemoteError` when the responder raised. Cancelling forgets the question; a late answer reaches nobody.
        """
        running = await self.connect()
        return await ask(running.engine, request, source=self.name, wait=seconds(timeout))

    @overload
    def stream(self, request: Request[R], *, timeout: str | float = 5.0) -> AsyncGenerator[R, None]: ...

    @overload
    def stream(self, request: Any, *, timeout: str | float = 5.0) -> AsyncGenerator[Any, None]: ...

    async def stream(self, request: Any, *, timeout: str | float = 5.0) -> AsyncGenerator[Any, None]:
        """Ask, and iterate over the answer of a responder that yields: `async for row in bus.stream(ListItems()): ...`

        Nothing runs ahead of the iteration by more than 64 items or 2 MiB. Raises what `request` raises; `timeout`
        (seconds) is the longest silence: `RequestTimeout` before the first sign of life, `StreamBroken` when the
        responder dies later, or is cut off. Leaving the iteration early (with `contextlib.aclosing`, at once) ends the
        responder's generator too.
        """
        running = await self.connect()
        async with aclosing(
            ask_stream(running.engine, self.clock, request, source=self.name, silence=seconds(timeout))
        ) as items:
            async for item in items:
                yield item

    @overload
    async def gather(
        self, request: Request[R], *, wait: str | float = 1.0, at_least: int | None = None
    ) -> Gathered[R]: ...

    @overload
    async def gather(self, request: Any, *, wait: str | float = 1.0, at_least: int | None = None) -> Gathered[Any]: ...

    async def gather(self, request: Any, *, wait: str | float = 1.0, at_least: int | None = None) -> Gathered[Any]:
        """Ask every process that answers such requests, and return who answered within `wait` seconds, and who had the
        question but did not answer.

        With `at_least` it returns as soon as so many have answered, and raises `TooFewAnswers` (with what came) when
        they do not. Raises `NoResponder` at once when nobody is there.
        """
        from .live.gather import AskingAll

        running = await self.connect()
        spec, body, headers = question(request, self.name)
        asking = AskingAll(spec.subject, spec.reply, at_least)
        return await asking.ask(running.engine, self.clock, body, headers, seconds(wait))

    def push(
        self,
        *events: Any,
        visible: Visible | None = None,
        user: User | None = None,
        most: int = 2000,
        per_user: int = 10,
    ) -> Push:
        """An ASGI application that pushes these events (classes or filters) to browsers as server-sent events with
        resume, and serves `tidings.js`: `app.mount("/push", bus.push(ItemSaved))`.

        `visible(message, request)`, plain or async, decides who sees what; it is also asked about the messages whose
        failure would be told, those that one of the events should have come of. `user(request)` names the user, who
        may have `per_user` streams at a time; one process holds `most`.
        """
        from .push import Push

        filters = tuple(filters_of(events))
        for spec in filter(None, map(spec_of, events)):
            self.registry.know(spec)
        self._pushed.extend(filters)
        return Push(self.connect, filters, visible=visible, user=user, most=most, per_user=per_user)

    # --- connecting -----------------------------------------------------------------------------------------------

    async def connect(self) -> Running:
        """Connect if it has not happened yet, and declare all groups of this bus.

        Connecting is one for all who use the bus meanwhile: who gives up waiting, cancelled or by a time limit of its
        own, ends it for nobody. Raises `ConfigError` for handlers that cannot work, or when it is connected in another
        event loop, `EngineUnavailable` when nobody answers, `Closed` when the bus is closed meanwhile.
        """
        connection = self._connections.current
        if connection is not None and connection.running is not None and connection.loop is asyncio.get_running_loop():
            return connection.running
        return await self._connections.connect()

    def _ready(self) -> Running:
        if (running := self.connected) is None:
            raise ConfigError("the bus is not connected")
        return running

    @property
    def connected(self) -> Running | None:
        """The connection, or None."""
        return self._connections.running

    async def close(self) -> None:
        """Stop workers (drained), send what is committed, disconnect; idempotent. The next use connects again.

        While the bus connects it gives that up. Cut off, it drains no more, but leaves nothing running.
        """
        await self._connections.close()

    async def __aenter__(self) -> Bus:
        try:
            await self.connect()
        except asyncio.CancelledError:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def work(self, groups: Sequence[str] | None = None) -> Worker:
        """Start handling in this process, all groups or those named; ends with `close`."""
        return await (await self.connect()).work(groups)

    @property
    def engine(self) -> Engine:
        """The engine of the connected bus."""
        return self._ready().engine

    @property
    def lifespan(self) -> Lifespan:
        """For `Starlette(lifespan=bus.lifespan)`, `FastAPI(lifespan=bus.lifespan(workers=True))`."""
        return Lifespan(self, workers=False)

    @asynccontextmanager
    async def replaced(self, running: Running, clock: Clock) -> AsyncIterator[None]:
        """Run on another connection and clock for a while; for tests (`tidings.testing.TestBus`)."""
        before = self._connections.current, self.clock
        self._connections.current, self.clock = Connection(running.loop, running), clock
        try:
            yield
        finally:
            try:
                await running.close()
            finally:
                self._connections.current, self.clock = before

    def __repr__(self) -> str:
        return f"<Bus {self.name!r}>"
