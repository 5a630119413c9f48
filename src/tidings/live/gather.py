"""Scatter and gather: one question to every process that answers it, and who answered by when.

The asker serves a channel of its own and says the question on a live channel that all responders hear. Each of them
announces itself there at once and sends its answer later: so whoever died in between, or is slow, is known by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from ..clock import Clock, timeout
from ..engine import Engine, Headers, Lagged, Reply, Responder, Signal
from ..errors import DecodeError, EngineError, InvalidMessage, NoResponder, RemoteError, RequestError, TooFewAnswers
from ..message import decode_header, encode_header
from .requests import answer
from .streaming import check_private, private_channel

log = logging.getLogger("tidings.requests")

R = TypeVar("R")

CHANNEL: Final = "tidings-gather"
WHO: Final = "tidings-responder"
ANSWERED: Final = "tidings-answer"
_ANNOUNCE_WITHIN: Final = 5.0


def question_channel(subject: str) -> str:
    """Where all responders of a subject hear what everybody is asked."""
    return f"_g.{subject}"


class Gathered(Generic[R]):
    """Who answered a question that all were asked, and who did not. Iterating gives the answers."""

    def __init__(self) -> None:
        self.answers: dict[str, R] = {}
        """By responder (`host:process/…`), in the order in which they came."""
        self.errors: dict[str, RemoteError | DecodeError] = {}
        """Of responders that raised, or that answered with something else."""
        self.announced: dict[str, None] = {}

    @property
    def missing(self) -> tuple[str, ...]:
        """Responders that had the question and did not answer in time: slow, or dead by now."""
        return tuple(who for who in self.announced if who not in self.answers and who not in self.errors)

    def __iter__(self) -> Iterator[R]:
        return iter(self.answers.values())

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        return f"<Gathered {len(self.answers)} answers, {len(self.errors)} errors, missing: {', '.join(self.missing)}>"


class AskingAll:
    """One question to all, on its way."""

    def __init__(self, subject: str, type: Any, at_least: int | None) -> None:
        self._subject = subject
        self._type = type
        self._at_least = at_least
        self._enough = asyncio.Event()
        self._gathered: Gathered[Any] = Gathered()

    async def ask(self, engine: Engine, clock: Clock, body: bytes, headers: Headers, wait: float) -> Gathered[Any]:
        """See `Bus.gather`."""
        channel = private_channel()
        async with engine.serve(channel, "asker", self._take):
            heard = await engine.broadcast(question_channel(self._subject), body, {**headers, CHANNEL: channel})
            if heard is not None and not heard:
                raise NoResponder(self._subject)
            with contextlib.suppress(TimeoutError):
                async with timeout(clock, wait):
                    await self._enough.wait()
        if self._at_least is not None and len(self._gathered) < self._at_least:
            raise TooFewAnswers(self._subject, self._gathered, self._at_least, wait)
        return self._gathered

    async def _take(self, subject: str, body: bytes, headers: Headers) -> Reply:
        """Serves the asker's channel: announcements, then answers; the first answer of each responder counts."""
        who = decode_header(headers.get(WHO, ""))
        if who and not self._enough.is_set():
            self._gathered.announced.setdefault(who)
            if ANSWERED in headers and who in self._gathered.missing:
                self._answered(who, Reply(body, headers))
        return Reply(b"", {})

    def _answered(self, who: str, reply: Reply) -> None:
        try:
            self._gathered.answers[who] = answer(reply, self._type)
        except (RemoteError, DecodeError) as error:
            self._gathered.errors[who] = error
        if self._at_least is not None and len(self._gathered) >= self._at_least:
            self._enough.set()


@asynccontextmanager
async def answering_all(engine: Engine, subject: str, name: str, responder: Responder) -> AsyncIterator[None]:
    """Answer, while entered, what everybody is asked; leaving waits for the answers that were begun."""
    answers: set[asyncio.Task[None]] = set()

    async def hear(signals: AsyncIterator[Signal | Lagged]) -> None:
        async for signal in signals:
            if isinstance(signal, Signal) and CHANNEL in signal.headers:
                task = asyncio.create_task(_answer(engine, subject, name, responder, signal))
                answers.add(task)
                task.add_done_callback(answers.discard)

    async with engine.listen([question_channel(subject)]) as signals:
        hearing = asyncio.create_task(hear(signals), name=f"tidings-gather-{subject}")
        try:
            yield
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
    await asyncio.gather(*answers, return_exceptions=True)


async def _answer(engine: Engine, subject: str, name: str, responder: Responder, signal: Signal) -> None:
    who = encode_header(name)
    headers = {key: value for key, value in signal.headers.items() if key != CHANNEL}
    try:
        channel = check_private(signal.headers[CHANNEL])
        await engine.request(channel, b"", {WHO: who}, _ANNOUNCE_WITHIN)
        reply = await responder(subject, signal.body, headers)
        await engine.request(channel, reply.body, {**reply.headers, WHO: who, ANSWERED: "1"}, _ANNOUNCE_WITHIN)
    except (RequestError, EngineError, InvalidMessage) as error:
        log.info("the answer to what all of %s were asked reaches nobody: %s", subject, error)
