"""Streams of replies, and asking everybody: what is beside the conformance cases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import pytest

import tidings
from tidings.engine import Engine, Headers, Reply
from tidings.errors import ConfigError, EngineUnavailable, RemoteError, RequestTimeout, StreamBroken
from tidings.live.streaming import BEAT, BROKEN_OFF, CHANNEL, NUMBER, AskerGone, _beat_of, deliver
from tidings.testing import TestBus


class Count(tidings.Request[int], subject="todo.count"):
    below: int = 3


class Plain(tidings.Request[int], subject="todo.plain"):
    pass


def counting() -> tidings.Bus:
    bus = tidings.Bus("todo")

    @bus.reply(Count)
    async def count(question: Count) -> AsyncIterator[int]:
        for number in range(question.below):
            yield number

    @bus.reply(Plain)
    async def plain(question: Plain) -> int:
        return 7

    return bus


async def test_a_plain_answer_is_a_stream_of_one() -> None:
    """Who asks for a stream also understands a responder that returns."""
    bus = counting()
    async with TestBus(bus):
        assert [number async for number in bus.stream(Plain())] == [7]


async def test_a_stream_has_to_be_asked_for() -> None:
    """`bus.request` of a responder that yields is told what to use."""
    bus = counting()
    async with TestBus(bus):
        with pytest.raises(RemoteError, match=r"bus\.stream"):
            await bus.request(Count())


async def test_only_responders_yield() -> None:
    """A handler of events that yields is still refused."""
    bus = tidings.Bus("todo")

    @bus.on("events.x", group="g")
    async def handle(body: dict[str, int]) -> AsyncIterator[None]:
        yield

    with pytest.raises(ConfigError, match="no yield"):
        async with TestBus(bus):
            pass


@pytest.mark.parametrize("channel", ["$JS.API.STREAM.PURGE.x", "_t.tidings.claims", "events.x", "_r.short", "_r.*", ""])
async def test_a_question_does_not_choose_where_its_responder_speaks(channel: str) -> None:
    """Only the private channel of an asker is spoken on: a responder may be allowed more than who asks it."""
    bus = counting()
    async with TestBus(bus):
        reply = await bus.engine.request("todo.count", b"{}", {CHANNEL: channel, BEAT: "0.1"}, 5.0)
    assert reply.error == "InvalidMessage"


@pytest.mark.parametrize("beat", ["nan", "-1", "0", "1e9", "soon", "inf"])
def test_a_hostile_beat_is_replaced(beat: str) -> None:
    """A question cannot make its responder send without pause, or never."""
    assert _beat_of({BEAT: beat}) == 1.0


async def test_silence_before_the_first_sign_is_a_timeout() -> None:
    """A responder that takes the question and never says anything costs the time limit, not more."""
    bus = counting()
    asked, release = asyncio.Event(), asyncio.Event()

    async def silent(subject: str, body: bytes, headers: Headers) -> Reply:
        asked.set()
        await release.wait()
        return Reply(b"1", {})

    async with TestBus(bus) as t, bus.engine.serve("todo.silent", "g", silent):

        class Silent(tidings.Request[int], subject="todo.silent"):
            pass

        asking = asyncio.ensure_future(anext(bus.stream(Silent(), timeout=5)))
        await asked.wait()
        await t.clock.advance(6)
        with pytest.raises(RequestTimeout):
            await asking
        release.set()


async def test_items_that_overtake_each_other_are_put_in_order() -> None:
    """Their numbers decide, and the end that comes first waits for them."""
    bus = counting()

    async def jumbled(subject: str, body: bytes, headers: Headers) -> Reply:
        async def send(number: int) -> None:
            await bus.engine.request(headers[CHANNEL], b"%d" % number, {NUMBER: str(number)}, 5.0)

        for number in (2, 0, 1):
            late.append(asyncio.create_task(send(number)))
            await asyncio.sleep(0)
        return Reply(b"", {"tidings-count": "3"})

    late: list[asyncio.Task[None]] = []
    async with TestBus(bus), bus.engine.serve("todo.jumbled", "g", jumbled):

        class Jumbled(tidings.Request[int], subject="todo.jumbled"):
            pass

        assert [number async for number in bus.stream(Jumbled())] == [0, 1, 2]
        await asyncio.gather(*late)


async def test_a_stream_that_was_cut_is_no_item() -> None:
    """A responder that could not deliver an item says so to an asker that is still there: the stream is broken."""
    bus = counting()

    async def cut(subject: str, body: bytes, headers: Headers) -> Reply:
        return BROKEN_OFF

    async with TestBus(bus), bus.engine.serve("todo.cut", "g", cut):

        class Cut(tidings.Request[int], subject="todo.cut"):
            pass

        with pytest.raises(StreamBroken, match="ask again"):
            await anext(bus.stream(Cut()))


async def test_large_items_are_not_far_ahead() -> None:
    """What is on its way to an asker is bounded in bytes too: a server hangs up on who lets too much wait."""
    bus = tidings.Bus("todo")
    made: list[int] = []

    class Pages(tidings.Request[str], subject="todo.pages"):
        pass

    @bus.reply(Pages)
    async def pages(_: Pages) -> AsyncIterator[str]:
        for number in range(30):
            made.append(number)
            yield "x" * 500_000

    got = 0
    async with TestBus(bus):
        async for _ in bus.stream(Pages()):
            got += 1
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(made) - got <= 5  # two megabytes, and one that waits for its turn
    assert got == 30


async def test_what_stands_behind_a_lost_item_is_not_waited_for() -> None:
    """A responder that could not deliver an item gives up those behind it, which the asker cannot take: the stream is
    broken, and nobody waits for the other one."""
    bus = tidings.Bus("todo")

    class Losing:
        async def request(self, channel: str, body: bytes, headers: Headers, timeout: float) -> Reply:
            if headers.get(NUMBER) == "1":
                raise EngineUnavailable("the connection was lost")
            return await bus.engine.request(channel, body, headers, timeout)

    async def items() -> AsyncGenerator[bytes, None]:
        for number in range(5):
            yield b"%d" % number

    async def respond(subject: str, body: bytes, headers: Headers) -> Reply:
        try:
            return await deliver(cast(Engine, Losing()), bus.clock, headers, items(), asyncio.Event())
        except AskerGone:
            return BROKEN_OFF

    class Lossy(tidings.Request[int], subject="todo.lossy"):
        pass

    async with asyncio.timeout(20), TestBus(bus), bus.engine.serve("todo.lossy", "g", respond):
        arriving = bus.stream(Lossy())
        assert await anext(arriving) == 0
        with pytest.raises(StreamBroken):
            await anext(arriving)
