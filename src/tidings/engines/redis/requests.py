"""Requests: a question goes to one living responder of each group, over publish-subscribe; nothing is stored.

Responders stand in a list at the server and take turns. It tells at once which of them still listen, so a question
that nobody will answer is known as such.

Whoever may publish on the server can say something that looks like a question. So it names no channel for its answer,
only who asks: what a responder says goes to an asker's own channel and nowhere else. It asks for what the responder
serves, and carries an id that nobody guesses, so that nobody is made to answer the question of somebody else.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, TypeAlias

import msgspec

from ...engine import Headers, Outgoing, Reply, Responder
from ...errors import Closed, EngineError, EngineUnavailable, NoResponder, RequestTimeout, TooLarge
from ...subjects import matches
from .codec import check, headers_of, packed
from .hearing import Ear, Hearing
from .link import Link
from .wire import Wire

log = logging.getLogger("tidings.engines.redis")


Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


class _Question(msgspec.Struct):
    """What comes before the body of a question."""

    subject: str
    asker: Name
    id: Name


class _Seat:
    """One `serve`: what it answers, and the answers it is working on."""

    def __init__(self, filter: str, group: str, responder: Responder) -> None:
        self.place = (filter, group)
        self.responder = responder
        self.running: set[asyncio.Task[None]] = set()
        self.member = ""


class Requests:
    def __init__(self, link: Link, hearing: Hearing) -> None:
        self._link = link
        self._hearing = hearing
        self._numbers = itertools.count(1)
        self._asked: dict[str, asyncio.Future[Reply | EngineError]] = {}
        self._listening = False
        self._starting = asyncio.Lock()
        self._seats: set[_Seat] = set()

    async def request(self, subject: str, body: bytes, headers: Headers, timeout: float) -> Reply:
        """See `Engine.request`. It is sent once: a responder may not be asked twice for one question."""
        check(Outgoing(subject, body, dict(headers), ""))
        try:
            async with asyncio.timeout(timeout):
                return await self._request(subject, body, headers)
        except TimeoutError:
            raise RequestTimeout(subject, timeout) from None

    async def _request(self, subject: str, body: bytes, headers: Headers) -> Reply:
        await self._start()
        await self._hearing.ready()
        id = secrets.token_hex(8)
        answer: asyncio.Future[Reply | EngineError] = asyncio.get_running_loop().create_future()
        self._asked[id] = answer
        try:
            question = _Question(subject, self._link.holder, id)
            told = b"%b\n%b\n%b" % (msgspec.json.encode(question), packed(headers), body)
            if not await self._link.call("ask", subject, told, once=True):
                raise NoResponder(subject)
            reply = await answer
        finally:
            self._asked.pop(id, None)
        if isinstance(reply, EngineError):
            raise reply
        return reply

    @asynccontextmanager
    async def serve(self, subject: str, group: str, responder: Responder) -> AsyncIterator[None]:
        """See `Engine.serve`. Requests run beside each other; leaving waits for those that have begun."""
        await self._start()
        seat = _Seat(subject, group, responder)
        seat.member = self._channel(f"seat:{next(self._numbers)}")
        ear = await self._hearing.listen(seat.member, lambda _channel, said: self._take(seat, said))
        try:
            await self._link.call("serve", *seat.place, seat.member)
            self._seats.add(seat)
            yield
        finally:
            self._seats.discard(seat)
            await self._leave(seat, ear)

    async def _leave(self, seat: _Seat, ear: Ear) -> None:
        try:
            await self._link.call("leave", *seat.place, seat.member, wait=2.0)
            await self._hearing.settle()  # what was asked before that has come in
        except EngineError as error:
            log.debug("leaving %s: %s", seat.place[0], error)
        finally:
            self._hearing.leave(ear)
        await asyncio.gather(*seat.running, return_exceptions=True)

    def unheard(self) -> None:
        """The connection was lost: what is answered meanwhile, or was on the way, nobody sends again."""
        server = self._link.address.shown
        self._end(lambda: EngineUnavailable(f"{server}: the connection was lost before the answer came: ask again"))

    def close(self) -> None:
        self._end(lambda: Closed("the engine was closed"))

    def _end(self, error: Callable[[], EngineError]) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(error())

    def sit_again(self) -> None:
        """While we did not listen, others who asked may have taken us off the list."""
        for seat in self._seats:
            self._link.spawn(self._sit(seat))

    async def _sit(self, seat: _Seat) -> None:
        await self._link.call("serve", *seat.place, seat.member)

    async def sit_anew(self, wire: Wire) -> None:
        """The namespace was made anew."""
        for seat in list(self._seats):
            await self._link.call_on(wire, "serve", *seat.place, seat.member)

    def _take(self, seat: _Seat, said: bytes) -> None:
        _name, _, rest = said.partition(b"\n")
        line, _, rest = rest.partition(b"\n")
        headers, _, body = rest.partition(b"\n")
        try:
            question, known = msgspec.json.decode(line, type=_Question), headers_of(headers)
        except msgspec.DecodeError as error:
            log.warning("what was said on %s is no question of ours and gets no answer: %s", seat.member, error)
            return
        if not matches(seat.place[0], question.subject):
            log.warning("a question for %.80r came to the responder of %s: no answer", question.subject, seat.place[0])
            return
        task = asyncio.create_task(self._answer(seat, question, body, known))
        seat.running.add(task)
        task.add_done_callback(seat.running.discard)

    async def _answer(self, seat: _Seat, question: _Question, body: bytes, headers: Headers) -> None:
        try:
            reply = await seat.responder(question.subject, body, headers)
            check(Outgoing(question.subject, reply.body, dict(reply.headers), ""))
            told = b"%b\n%b\n%b" % (question.id.encode(), packed(reply.headers), reply.body)
            await self._link.command("PUBLISH", self._channel("answers", question.asker), told)
        except (EngineUnavailable, TooLarge) as error:
            log.warning("the answer to %s could not be sent: %s", question.subject, error)
        except Exception:
            log.exception("the responder of %s failed; the asker will run into its timeout", question.subject)

    async def _start(self) -> None:
        if self._listening:
            return
        async with self._starting:
            if not self._listening:
                await self._hearing.listen(self._channel("answers"), self._hear)
                # Whoever made an emptied namespace anew knows no seats but its own.
                await self._hearing.listen(f"{{{self._link.namespace}}}:anew", lambda _channel, _said: self.sit_again())
                self._listening = True

    def _hear(self, _channel: str, said: bytes) -> None:
        id, _, rest = said.partition(b"\n")
        headers, _, body = rest.partition(b"\n")
        answer = self._asked.get(id.decode("ascii", "replace"))
        if answer is not None and not answer.done():
            answer.set_result(Reply(body, headers_of(headers)))

    def _channel(self, name: str, holder: str = "") -> str:
        return f"{{{self._link.namespace}}}:to:{holder or self._link.holder}:{name}"
