"""A handler: a function, what it listens to, and its options."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from .claims import Start
from .errors import ConfigError
from .events import spec_of
from .rate import per_second
from .retry import RetryPolicy
from .settings import seconds
from .subjects import check_filter, matches, normalise


class HandlerOptions(msgspec.Struct, frozen=True):
    """How a group handles its messages."""

    group: str
    """Name of the group: replicas with the same name share the messages. It is part of what is stored, so it is not
    derived from the function's name: renaming a function must not be a migration."""
    retry: RetryPolicy | None = None
    """When a failed message comes back; None: the bus's policy."""
    timeout: str | float | None = None
    """Seconds (or `"2m"`) one message may take; None: the setting `timeout` (60 s). What runs longer is cancelled and
    retried."""
    concurrency: int | None = None
    """What runs at once in one worker process: transactions, and so database connections, or else messages, or
    batches. None: 1 with a transaction or a `Batch`, else 16. In an ordered group they are of as many keys."""
    start: Start | datetime = "unclaimed"
    """Where a *new* group begins: with what no group had claimed (the default), with what comes from now on
    (`"latest"`), with everything that is stored (`"earliest"`), or with what was stored at a time with a time zone or
    later. An existing group always goes on where it stands."""
    commit: Literal["group", "each"] = "group"
    """With a transaction: one for all messages that wait (`"group"`), or one for each (`"each"`)."""
    batch: int | None = None
    """Of a handler that takes a `Batch`: most messages of one call; None: 256. It gets what waits, and never waits for
    more."""
    rate: str | float | None = None
    """Messages that one worker process begins at most: `"100/s"`, `"30/m"`, or a number per second. They come evenly,
    and a worker that was idle makes up for one second at most. None: no limit."""
    order: bool = False
    """Handle the messages of each key in their order in the stream, over failures and restarts: one worker process of
    the group is active, others stand by. A message that fails holds up later ones of its key; one that is dead parks
    them, until it is redriven or dropped. Messages without a key are one sequence. For effects in the database of a
    transaction; without one a message may run again after a crash, and the order holds but for that."""


class Handler:
    """A function, the filters it listens to and its options. The function itself stays a plain function."""

    def __init__(self, function: Callable[..., Any], what: Sequence[Any], options: HandlerOptions) -> None:
        self.function = _function(function)
        self.filters = tuple(filters_of(what))
        self.options = options
        self.classes = tuple(spec for item in what if (spec := spec_of(item)) is not None)
        """The specs of the event classes it was registered with."""
        self.limit = _limit(self)
        """Seconds that one message may take; None: as the setting says."""
        _check_options(self)

    @property
    def name(self) -> str:
        """For people: `module.function`."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def listens_to(self, subject: str) -> bool:
        return any(matches(filter, subject) for filter in self.filters)


def _function(thing: Any) -> Callable[..., Any]:
    """What is to be called; raises `ConfigError` for what has no name to show, or hides what it takes."""
    if isinstance(thing, staticmethod):
        thing = thing.__func__
    if inspect.isfunction(thing) or inspect.ismethod(thing):
        return thing
    advice = "write a def or async def for it"
    if isinstance(thing, functools.partial):
        advice = "write an async def that calls it, and offer what it binds with bus.provide(factory)"
    elif isinstance(thing, classmethod):
        advice = "register the method once the class is there, as in bus.on(…)(Service.handle)"
    elif callable(thing):
        advice = "register a method of an object, as in bus.on(…)(service.handle)"
    raise ConfigError(f"{thing!r} is no function: {advice}")


def filters_of(what: Sequence[Any]) -> list[str]:
    """Filters of event classes and subject filters, as given to a decorator."""
    if not what:
        raise ConfigError("say what to listen to: an event class or a subject such as 'events.orders.*'")
    filters = []
    for item in what:
        if isinstance(item, str):
            filters.append(check_filter(item))
        elif (spec := spec_of(item)) is not None:
            filters.append(spec.subject)
        else:
            raise ConfigError(
                f'{item!r} has no subject: derive it from tidings.Event with subject="events.…", or decorate it with '
                '@tidings.event("events.…")'
            )
    return normalise(filters)


def _limit(handler: Handler) -> float | None:
    try:
        return seconds(handler.options.timeout)
    except ConfigError as error:
        raise ConfigError(f"{handler.name}: timeout={error}") from None


def _check_options(handler: Handler) -> None:
    """Raise `ConfigError` for what a handler cannot be asked."""
    options = handler.options
    if options.retry is not None and not isinstance(options.retry, RetryPolicy):
        raise ConfigError(
            f"{handler.name}: retry={options.retry!r}: write a policy, as in retry=tidings.RetryPolicy(attempts=3)"
        )
    for name, number in (("concurrency", options.concurrency), ("batch", options.batch)):
        if number is not None and not (isinstance(number, int) and number >= 1):
            raise ConfigError(f"{handler.name}: {name}={number!r}: a whole number, at least 1")
    if handler.limit is not None and not (isinstance(handler.limit, int | float) and handler.limit > 0):
        raise ConfigError(f"{handler.name}: timeout={options.timeout!r}: seconds, more than 0")
    if isinstance(options.start, datetime):
        if options.start.tzinfo is None:
            raise ConfigError(f"{handler.name}: start={options.start} has no time zone: write datetime(…, tzinfo=UTC)")
    elif options.start not in typing.get_args(Start):
        words = ", ".join(typing.get_args(Start))
        raise ConfigError(f"{handler.name}: start={options.start!r}: write one of {words}, or a datetime")
    if options.commit not in ("group", "each"):
        raise ConfigError(f"{handler.name}: commit={options.commit!r}: write 'group' or 'each'")
    if options.rate is not None:
        try:
            per_second(options.rate)
        except ConfigError as error:
            raise ConfigError(f"{handler.name}: {error}") from None
