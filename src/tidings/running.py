"""A connected bus: its engine, its groups declared, and what runs in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from . import claims, engines
from .codec import codec_for
from .engine import Engine, Entry
from .errors import Closed, ConfigError, EngineError, NotAllowed
from .events import EventSpec
from .handlers import Handler
from .live.gather import answering_all
from .live.listeners import Listening
from .live.requests import Responding
from .message import Message, identity
from .outbox import Relay, relay_for
from .publisher import Publisher
from .registry import Plan
from .retention import Janitor
from .schedule import Ticker, subject_of
from .unit import Units
from .watching.chains import Chains
from .watching.failures import Teller
from .watching.hub import Hub, log_id
from .work.handling import Handling
from .work.worker import Worker

if TYPE_CHECKING:
    from .bus import Bus

log = logging.getLogger("tidings")


class Running:
    """Everything a bus has while it is connected. Made by `Bus.connect`."""

    def __init__(self, bus: Bus, engine: Engine, namespace: str, units: Sequence[Units], stack: AsyncExitStack) -> None:
        self.bus = bus
        self.engine = engine
        self.namespace = namespace
        self.units = list(units)
        self.publisher = Publisher(engine, bus.registry, source=bus.name, roots=bus.roots, clock=bus.clock)
        self.publisher.waiting = bus.receipts
        self.teller = Teller(engine, namespace)
        self.chains = Chains(engine, namespace)
        self.relays = [Relay(unit, self.publisher, bus.clock, lease=bus.settings.lease) for unit in self.units]
        self.worker: Worker | None = None
        self.lent = False
        """Somebody else started it and ends it: the application's own lifespan does neither."""
        self.janitor: Janitor | None = None
        self.loop = asyncio.get_running_loop()
        self._ledger = claims.Ledger()
        self.identity = f"{socket.gethostname()}:{os.getpid()}/{bus.name}-{secrets.token_hex(2)}"
        """This connected bus among all others, for people."""
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._hubs: dict[tuple[str, ...], Hub] = {}
        self._stack = stack
        """Ends what runs, in the order opposite to that in which it was begun."""
        self._closing = asyncio.Lock()
        self._closed = False

    @property
    def handlers(self) -> dict[str, Handler]:
        """Everything this bus handles, by group."""
        return self.bus.registry.handlers_in(self.namespace)

    @classmethod
    async def start(cls, bus: Bus, pushed: Sequence[str]) -> Running:
        """Connect to the engine of the bus's settings and declare its groups."""
        place = engines.parse(bus.settings.url, bus.settings.namespace)
        async with AsyncExitStack() as stack:
            units = units_of(bus, stack)
            ticks = (subject_of(place.namespace, ">"),) if bus.registry.schedules else ()
            engine = await engines.connect(place, stack, roots=(*bus.roots, *ticks), clock=bus.clock)
            running = cls(bus, engine, place.namespace, units, stack)
            await running.declare(pushed)
            running._stack = stack.pop_all()
        return running

    async def declare(self, pushed: Sequence[str] = ()) -> None:
        """Run what the application wants to have run first, understand every handler, then write all groups into the
        ledger."""
        for starter in self.bus.starters:
            await starter()
        for responder in self.bus.registry.responders.values():
            self._plan(responder)
        wishes = []
        for group, handler in self.handlers.items():
            plan = self._plan(handler)
            options = handler.options
            wishes.append(claims.Wish(group, handler.filters, options.start, plan.emits, options.order))
        readers = {f"{self.bus.name}-push": tuple(pushed)} if pushed else None
        name, lease = self.bus.name, self.bus.settings.lease
        try:
            before, _ = await claims.load(self.engine)
            self._ledger = await claims.declare(self.engine, wishes, lease=lease, readers=readers, app=name)
            self._tell_taken(claims.taken(before, wishes, name))
            await log_id(self.engine)
        except NotAllowed as error:
            # Enough for a process that publishes, waits and pushes, once a worker has declared the rest.
            log.warning("this user declares nothing: %s", error)
        for relay in self.relays:
            await relay.units.prepare()
        for relay in self.relays:  # once nothing can fail any more
            relay.start()
            self._stack.push_async_callback(relay.end)

    def _tell_taken(self, taken: dict[str, str]) -> None:
        for group, other in taken.items():
            log.warning(
                "group %r is also that of the application %r: replicas of one group share its messages, and so do "
                "these two. Unless this one was just renamed, give one of them a group name of its own, or a namespace "
                "(--namespace, TIDINGS_NAMESPACE)",
                group,
                other,
            )

    def _plan(self, handler: Handler) -> Plan:
        # Not by name: functions of a factory, or one that is defined twice, have the same.
        key = handler.options.group, handler.filters, handler.function
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self.bus.registry.plan(handler, self.units)
        return plan

    async def work(self, groups: Sequence[str] | None = None) -> Worker:
        """Start the worker, the responders and the listeners of this process: all of it or, when something raises,
        nothing, so that it can be tried again."""
        if self.worker is not None:
            raise ConfigError("the workers of this bus already run in this process")
        handlings = self._handlings(groups)
        settings = self.bus.settings
        async with AsyncExitStack() as stack:
            stack.callback(setattr, self, "worker", None)
            self.worker = worker = Worker(
                self.engine,
                handlings,
                self.relays,
                clock=self.bus.clock,
                lease=settings.lease,
                grace=settings.grace,
                settled=self.teller.settled,
            )
            stack.push_async_callback(self.teller.stop)
            if groups is None:
                await self._answer_and_listen(stack, settings.timeout)
            await self._keep_schedules(stack, groups)
            if self._closed:
                raise Closed("the bus was closed while its workers were started")
            worker.start()
            stack.push_async_callback(worker.end)
            self.janitor = Janitor(self.engine, self.units, settings, clock=self.bus.clock)
            self.janitor.start()
            stack.push_async_callback(self.janitor.stop)
            self._stack.push_async_exit(stack.pop_all())
        return worker

    def _handlings(self, groups: Sequence[str] | None) -> list[Handling]:
        """What the worker is to run; raises `ConfigError`."""
        settings = self.bus.settings
        unknown = [name for name in groups or () if name not in self.handlers]
        if unknown:
            known = ", ".join(self.handlers) or "none"
            raise ConfigError(f"this bus has no group {unknown[0]!r}; it has: {known}")
        handlings = [
            Handling(
                handler,
                self._plan(handler),
                self.publisher,
                self.namespace,
                settings.retry,
                settings.timeout,
                settings.version_grace,
            )
            for name, handler in self.handlers.items()
            if groups is None or name in groups
        ]
        for handling in handlings:
            self._check_order(handling.handler)
        return handlings

    def _check_order(self, handler: Handler) -> None:
        """One that does not keep the order would break it for those that do."""
        group = handler.options.group
        claimant = self._ledger.groups.get(group)
        if claimant is not None and claimant.ordered and not handler.options.order:
            raise ConfigError(
                f"group {group!r} was declared with order=True, and {handler.name} does not keep the order: write "
                "order=True, or, once all its workers are stopped, give the order up with: "
                f"tidings groups unorder {group}"
            )

    async def _keep_schedules(self, stack: AsyncExitStack, groups: Sequence[str] | None) -> None:
        schedules = [s for name, s in self.bus.registry.schedules.items() if groups is None or name in groups]
        ticker = Ticker(self.engine, schedules, namespace=self.namespace, source=self.bus.name, clock=self.bus.clock)
        stack.push_async_callback(ticker.stop)
        await ticker.start()

    async def _answer_and_listen(self, stack: AsyncExitStack, limit: float) -> None:
        registry = self.bus.registry
        for subject, handler in registry.responders.items():
            spec: EventSpec = registry.types[subject]
            responding = Responding(handler, self._plan(handler), spec, self.publisher, limit)
            await stack.enter_async_context(self.engine.serve(subject, self.bus.name, responding))
            if not responding.streams:
                everybody = answering_all(self.engine, subject, self.identity, responding)
                await stack.enter_async_context(everybody)
            stack.callback(responding.stop)
        for listener in registry.listeners:
            listening = Listening(listener, self._plan(listener.handler), self.publisher)
            await stack.enter_async_context(listening.running())

    def relay_of(self, session: Any) -> Relay:
        """What sends the outbox of the session's database."""
        return relay_for(self.relays, session)

    def hub(self, filters: Sequence[str]) -> Hub:
        """The one reader of these subjects for all browsers of this process."""
        key = tuple(filters)
        if key not in self._hubs:
            self._hubs[key] = Hub(self.engine, filters, self.namespace)
            self._stack.push_async_callback(self._hubs[key].close)
        return self._hubs[key]

    def decode(self, entry: Entry) -> Message[Any]:
        """An entry as a message, by what the bus knows of its subject; raises `DecodeError`."""
        spec = self.bus.registry.types.get(entry.subject)
        body = self.bus.registry.upcasters.current(entry, spec) if spec else entry.body
        data = codec_for(spec.type if spec else Any).decode(body)
        return Message(entry, data, id=identity(entry, self.namespace))

    async def close(self) -> None:
        """Drain and disconnect. What cannot be handed back any more comes back by its lease. Cut off, it drains no
        more, but still ends all that runs."""
        self._closed = True
        async with self._closing, self._stack:
            try:
                if self.worker is not None:
                    await self.worker.stop()
                for relay in self.relays:
                    await relay.stop()
            except EngineError as error:
                log.warning("stopped without the engine: %s", error)


def units_of(bus: Bus, stack: AsyncExitStack) -> list[Units]:
    """Units of work for the sessions the bus was given; leaving `stack` closes them."""
    units: list[Units] = []
    for maker in bus.sessions:
        from .sql import Tables, units_for

        settings = bus.settings
        made = units_for(maker, Tables(settings.tables_prefix, settings.tables_schema), lease=settings.lease)
        stack.push_async_callback(made.close)
        units.append(made)
    return units
