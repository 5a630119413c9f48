"""A connection that comes back: it reconnects, looks after the namespace, and repeats what may be repeated."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, TypeAlias

from redis.exceptions import ResponseError

from ...errors import Closed, EngineError, EngineUnavailable
from .address import Address
from .trouble import Again, Gone, judged
from .wire import Disconnected, Loading, OnPush, Unreachable, Wire

log = logging.getLogger("tidings.engines.redis")

Prepare: TypeAlias = Callable[[Wire], Awaitable[None]]

_PAUSES: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
_STARTING: Final = 6.0
"""Seconds that a server may take to start together with those that use it."""
_PATIENCE_PER_TRY: Final = 3
_LOADING: Final = 60.0


class Line:
    """One wire after the other, as long as it is open. `prepare` readies each before anybody may use it; `on_lost` is
    called when one is lost, be it ready or not. While `told_elsewhere`, nothing is logged of that."""

    def __init__(
        self,
        address: Address,
        name: str,
        within: float,
        prepare: Prepare,
        on_push: OnPush | None = None,
        on_lost: Callable[[], None] = lambda: None,
        told_elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        self._address = address
        self._name = name
        self._within = within
        self._prepare = prepare
        self._on_push = on_push
        self._tell_lost = on_lost
        self._told_elsewhere = told_elsewhere
        self._wire: Wire | None = None
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self.trouble: Exception | None = None
        """Why there is no connection."""

    @property
    def wire(self) -> Wire | None:
        """The wire that may be used now."""
        return self._wire if self._wire is not None and self._wire.alive and self._connected.is_set() else None

    async def open(self, patience: float) -> None:
        """Connect, and then keep connecting until `close`. Raises what stands in the way; a server that just
        starts is waited for: `patience` seconds while nobody answers, a minute while it says that it reads its file."""
        began = asyncio.get_running_loop().time()
        for pause in _pauses():
            try:
                await self._connect()
                break
            except Unreachable as error:
                most = _LOADING if isinstance(error, Loading) else patience
                if asyncio.get_running_loop().time() + pause > began + most:
                    raise
            await asyncio.sleep(pause)
        self._keeper = asyncio.create_task(self._keep(), name="tidings redis connection")

    async def ready(self, within: float) -> Wire:
        """The wire, as soon as there is one. Raises `EngineUnavailable` after `within` seconds."""
        if (wire := self.wire) is not None:
            return wire
        try:
            async with asyncio.timeout(max(within, 0.0)):
                while (wire := self.wire) is None:
                    self._check_open()
                    await self._connected.wait()
                    await asyncio.sleep(0)
                return wire
        except TimeoutError:
            raise EngineUnavailable(self._why()) from None

    async def close(self, *, abandon: bool = False) -> None:
        self._closed = True
        self._connected.set()  # who waits for a wire learns that there will be none
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._wire is not None:
            await (self._wire.abandon() if abandon else self._wire.close())

    def drop(self, error: Exception) -> None:
        """Give up the wire there is; another one is made."""
        if self._wire is not None and self._wire.alive:
            self._wire.lose(error)

    async def _connect(self) -> None:
        self._lost.clear()
        wire = Wire(self._address, self._name, self._within, self._on_lost, self._on_push)
        await wire.connect()
        self._wire = wire
        try:
            self._check_open()
            await self._prepare(wire)
            self._check_open()
            if not wire.alive:  # it was lost before this task went on
                raise Disconnected(f"{self._address.shown}: {self.trouble}")
        except TimeoutError as error:
            await wire.abandon()
            raise EngineUnavailable(f"{self._address.shown} does not answer") from error
        except BaseException:
            await wire.abandon()
            raise
        self.trouble = None
        self._connected.set()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the engine was closed")

    def _why(self) -> str:
        if isinstance(self.trouble, EngineError):
            return str(self.trouble)
        return f"{self._address.shown}: the connection was lost ({self.trouble or 'no answer'}), and there is none yet"

    def _on_lost(self, wire: Wire, error: Exception) -> None:
        if wire is self._wire:
            self.trouble = error
            self._connected.clear()
            self._lost.set()
            self._tell_lost()

    async def _keep(self) -> None:
        while True:
            await self._lost.wait()
            quiet = self._told_elsewhere()
            if not quiet:
                why = str(self.trouble).rstrip(".")
                log.warning("%s: the connection was lost (%s); connecting again", self._address.shown, why)
            for pause in _pauses():
                if self._wire is not None:
                    await self._wire.abandon()
                try:
                    await self._connect()
                    if not quiet:
                        log.info("%s: connected again", self._address.shown)
                    break
                except (EngineError, ResponseError) as error:
                    self.trouble = error
                await asyncio.sleep(pause)


def _pauses() -> Iterator[float]:
    """Seconds between tries to connect."""
    return itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))


class Link:
    """Calls functions of the server on one line, and listens on another.

    Each call carries a name, which comes back with its answer, so that no answer is ever taken for that of another
    question. Calls that must not happen twice are known to the server by their name for a minute.
    """

    def __init__(self, address: Address, namespace: str, timeout: float) -> None:
        self.address = address
        self.namespace = namespace
        self.timeout = timeout
        self.holder = secrets.token_hex(8)
        self.incarnation = ""
        self.within = min(5.0, timeout / _PATIENCE_PER_TRY)
        self.on_gone: Callable[[Wire], Awaitable[None]] = _nothing
        """Called when the server no longer knows the namespace as we do: makes it anew."""
        self._numbers = itertools.count(1)
        self._mending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.line: Line | None = None

    async def open(self, prepare: Prepare) -> None:
        """Raises what stands in the way."""
        self.line = Line(self.address, f"tidings-{self.namespace}", self.within, prepare)
        await self.line.open(min(_STARTING, self.timeout))

    @property
    def connected(self) -> bool:
        return self.line is not None and self.line.wire is not None

    async def call(
        self,
        name: str,
        *args: Any,
        doubt: type[EngineError] = EngineUnavailable,
        wait: float | None = None,
        once: bool = False,
    ) -> Any:
        """The answer of `tidings_<name>`. Repeated under one name until `timeout` (or `wait`) is over; then raises
        `EngineUnavailable` if it was never sent, else `doubt`. With `once` it is not repeated after a lost answer."""
        if self.line is None:
            raise Closed("the engine is not open")
        loop = asyncio.get_running_loop()
        mark = f"{name}:{self.holder}:{next(self._numbers)}"
        limit = self.timeout if wait is None else wait
        until, lost, pause = loop.time() + limit, False, 0.01
        why: Exception = TimeoutError("no answer in time")
        while True:
            left = until - loop.time()
            wire = await self._ready(left, doubt if lost else None)
            try:
                async with asyncio.timeout(max(left, 0.05)):
                    return await self.call_on(wire, name, *args, mark=mark)
            except (Disconnected, TimeoutError) as error:
                why, lost = error, True
            except ResponseError as error:
                why = await self._consider(error, wire)
            if (once and lost) or loop.time() + pause >= until:
                break
            await asyncio.sleep(pause)
            pause = min(0.3, pause * 2)
        raise (doubt if lost else EngineUnavailable)(
            f"{self.address.shown} did not confirm {name} within {limit:g} s: {str(why) or 'no answer'}"
        )

    async def call_on(self, wire: Wire, name: str, *args: Any, mark: str = "") -> Any:
        """The same over one wire, once. Raises the server's error as it is."""
        mark = mark or f"{name}:{self.holder}:{next(self._numbers)}"
        answer = await wire.ask("FCALL", f"tidings_{name}", 1, self.namespace, mark, self.incarnation, *args)
        if isinstance(answer, list) and answer and answer[0] == mark.encode():
            return answer[1]
        error = Disconnected(f"{self.address.shown}: an answer to {mark} came that is none: {answer!r:.100}")
        wire.lose(error)
        raise error

    async def _ready(self, left: float, doubt: type[EngineError] | None) -> Wire:
        assert self.line is not None
        try:
            return await self.line.ready(left)
        except (EngineUnavailable, Closed) as error:
            if doubt is not None and doubt is not EngineUnavailable:
                raise doubt(f"{error}; what was sent before may have been done") from error
            raise

    async def _consider(self, error: ResponseError, wire: Wire) -> Exception:
        """What a refusal means: returns why to try again, or raises."""
        why = judged(error, self.address)
        if isinstance(why, Gone):
            why = await self._mend(wire) or why
        if isinstance(why, Again) and why.reconnect and self.line is not None:
            self.line.drop(why)
        if isinstance(why, Gone | Again | Disconnected):
            return why
        raise why from error

    async def _mend(self, wire: Wire) -> Exception | None:
        """Have the namespace made anew; returns what came between."""
        try:
            async with self._mending:
                await self.on_gone(wire)
        except Disconnected as lost:
            return lost
        except ResponseError as error:
            return judged(error, self.address)
        return None

    async def command(self, *command: Any) -> Any:
        """A plain command that may be done twice: it is repeated when the connection is lost, until `timeout`."""
        if self.line is None:
            raise Closed("the engine is not open")
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    wire = await self.line.ready(self.timeout)
                    with contextlib.suppress(Disconnected):
                        return await wire.ask(*command)
        except TimeoutError as error:
            raise EngineUnavailable(f"{self.address.shown} does not answer") from error
        except ResponseError as error:
            raise judged(error, self.address) from error

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside; what goes wrong with it is logged, and it ends with the connection."""
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, *, abandon: bool = False) -> None:
        for task in self._tasks:
            task.cancel()
        if self.line is not None:
            with contextlib.suppress(EngineError):
                await self.line.close(abandon=abandon)


async def _nothing(wire: Wire) -> None:
    return None


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except EngineError as error:
        log.warning("%s", error)
