"""A user's function is called: what providers make for it, the thread of a plain function, its time limit."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

from ..batch import Batch
from ..clock import Clock, timeout
from ..errors import ConfigError
from ..message import Message, current_message
from ..registry import Parameter, Provider
from ..threads import Threads
from ..unit import Member, Unit
from .outage import Away

log = logging.getLogger("tidings.worker")

in_transaction: contextvars.ContextVar[bool] = contextvars.ContextVar("tidings_in_transaction", default=False)
"""Whether the running handler has a transaction: then `bus.publish` would not belong to it."""

COMMIT_LIMIT: Final = 30.0
"""Seconds for a database to answer what is asked of it besides the handler's own statements."""
_threads = Threads()  # of plain handlers without a transaction


class TimeUp(TimeoutError):
    """The handler's time limit, told apart from a `TimeoutError` of the handler's own."""


class WrongReturn(ConfigError, TypeError):
    """The handler returned what is no event, or is one of no message in particular."""


class ExitedItself(Exception):
    """The handler called `sys.exit`."""

    def __init__(self, handler: str, error: SystemExit) -> None:
        super().__init__(f"{handler} called sys.exit({error.code!r}): a handler returns or raises an exception")


class CancelledItself(Exception):
    """A `CancelledError` out of the handler although nobody cancelled the handler: an error like any other. Handed
    back as if the worker stopped, the message would come again at once, for ever."""

    def __init__(self, handler: str, error: asyncio.CancelledError) -> None:
        super().__init__(
            f"{handler} ended with CancelledError, and the worker had not cancelled it: what it awaited was cancelled, "
            "or somebody else cancelled its task"
        )
        self.__cause__ = error


def is_stopping() -> bool:
    """Whether a `CancelledError` here means the running task, and not only something it awaited."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def loop_ends() -> bool:
    """Whether everything is cancelled, as `asyncio.run` does at its end."""
    return all(task.cancelling() for task in asyncio.all_tasks())


def late(seconds: float) -> TimeUp:
    return TimeUp(f"the handler was still running after {seconds:g} s and was cancelled")


@asynccontextmanager
async def time_limit(clock: Clock, seconds: float) -> AsyncIterator[None]:
    """Cancel what runs inside after the time; raises `TimeUp`."""
    scope = None
    try:
        async with timeout(clock, seconds) as scope:
            yield
    except TimeoutError as error:
        if scope is not None and scope.expired():
            raise late(seconds) from error.__cause__  # where it was at that moment
        raise


@asynccontextmanager
async def answering(clock: Clock) -> AsyncIterator[None]:
    """What is asked of the database inside is answered within `COMMIT_LIMIT` seconds; raises `Away`."""
    try:
        async with time_limit(clock, COMMIT_LIMIT):
            yield
    except TimeUp:
        silent = TimeoutError(f"the database has not answered for {COMMIT_LIMIT:g} s")
        raise Away(silent, sure=True) from None


class being_handled:  # noqa: N801  (used as a function is; a class costs a third of a generator)
    """What is published inside is caused by the message; what a batch publishes, by none of its messages alone."""

    __slots__ = ("_before", "_message", "_transactional")

    def __init__(self, message: Message[Any] | None, transactional: bool) -> None:
        self._message = message
        self._transactional = transactional

    def __enter__(self) -> None:
        self._before = current_message.set(self._message), in_transaction.set(self._transactional)

    def __exit__(self, *_: object) -> None:
        message, transaction = self._before
        in_transaction.reset(transaction)
        current_message.reset(message)


def argument(parameter: Parameter, given: Message[Any] | Batch[Any], unit: Unit | Member | None) -> Any:
    """What a parameter that needs no provider is given."""
    if parameter.kind == "event":
        return given.data if isinstance(given, Message) else given
    if parameter.kind == "connection":
        return unit.connection if unit else None
    return given


async def provided(provider: Provider, stack: AsyncExitStack) -> Any:
    """A value of a provider; generators live until the stack is left, which is when the message is done."""
    made = provider()
    if inspect.isasyncgen(made):
        return await stack.enter_async_context(asynccontextmanager(lambda: made)())
    if inspect.isgenerator(made):
        return stack.enter_context(contextmanager(lambda: made)())
    if inspect.isawaitable(made):
        return await made
    return made


async def call(
    function: Callable[..., Any], arguments: dict[str, Any], is_async: bool, unit: Unit | Member | None
) -> Any:
    """Call a handler: a coroutine function here, a plain function in a thread."""
    if is_async:
        return await function(**arguments)

    def run() -> Any:
        try:
            result = function(**arguments)
            if inspect.iscoroutine(result):
                result.close()
                raise WrongReturn(
                    f"{function.__qualname__} is a plain def that returned a coroutine, which nobody awaits: write "
                    "async def, in the decorators around it too"
                )
            return result
        except StopIteration as error:
            # A future cannot hold one: whoever waits for the thread would wait for ever.
            raise RuntimeError(f"{function.__qualname__} raised StopIteration") from error
        finally:
            ended.set()

    ended = threading.Event()
    thread = _threads.take() if unit is None else None
    try:
        if unit is not None:
            return await unit.run(contextvars.copy_context().run, run)
        assert thread is not None
        return await thread.run(run)
    except asyncio.CancelledError:
        if not ended.is_set():
            log.error("a thread cannot be stopped: %s goes on in the background", function.__qualname__)
        raise
    finally:
        if thread is not None:
            _threads.give_back(thread)
