"""The lines of the Redis engine: lost while they are made ready, left, closed, and a server emptied under them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from redis_server import RedisServer
from tidings.engine import Headers, Outgoing, Reply
from tidings.engines.redis.hearing import Hearing
from tidings.engines.redis.link import Line
from tidings.engines.redis.wire import Wire
from tidings.errors import EngineError, NoResponder, RequestTimeout

if TYPE_CHECKING:
    from on_redis import Start

pytest_plugins = ("on_redis",)


async def echo(subject: str, body: bytes, headers: Headers) -> Reply:
    return Reply(body, headers)


async def test_a_wire_that_is_lost_while_it_is_made_ready_is_used_by_nobody(server: RedisServer) -> None:
    """The last confirmation and the hang-up may come together: the line is then not connected, and neither is the next
    wire before it is ready."""
    usable: list[bool] = []
    ready = asyncio.Event()

    async def prepare(wire: Wire) -> None:
        usable.append(line.wire is not None)
        if len(usable) == 2:
            line.drop(ConnectionError("the server has hung up"))
        ready.set() if len(usable) == 3 else None

    line = Line(server.address, "tested", 3.0, prepare)
    await line.open(3.0)
    try:
        line.drop(ConnectionError("the server has hung up"))
        async with asyncio.timeout(20):
            await ready.wait()
        assert (await line.ready(5.0)).alive
        assert usable == [False, False, False]
    finally:
        await line.close()


async def test_who_leaves_delays_nobody_who_listens(server: RedisServer, start: Start) -> None:
    """A line that is being made ready does not wait for the confirmation of what nobody listens to any more, and the
    server is told."""
    engine = await start()
    hearing = Hearing(engine._link)
    try:
        await hearing.listen("kept", lambda _channel, _said: None)
        leaving = await hearing.listen("left", lambda _channel, _said: None)
        wire = await hearing._line.ready(5.0)
        preparing = asyncio.create_task(hearing._prepare(wire))
        await asyncio.sleep(0)
        hearing.leave(leaving)
        await preparing
        await hearing.settle()
        assert b"$4\r\nkept\r\n:1\r\n$4\r\nleft\r\n:0\r\n" in await server.ask("PUBSUB", "NUMSUB", "kept", "left")
    finally:
        await hearing.close()


async def test_who_waits_to_hear_waits_for_the_next_line(server: RedisServer, start: Start) -> None:
    """A line that is lost before it confirmed a subscription makes nobody believe that it hears."""
    engine = await start()
    hearing = Hearing(engine._link)
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    try:
        await hearing.listen("first", lambda _channel, _said: None)
        listening = asyncio.create_task(hearing.listen("second", lambda _channel, said: heard.put_nowait(said)))
        await asyncio.sleep(0)
        hearing._line.drop(ConnectionError("the server has hung up"))
        async with asyncio.timeout(3.0):  # sooner than a wire gives up an answer
            await listening
        assert await server.ask("PUBLISH", "second", "x") == b":1\r\n"
        assert await heard.get() == b"x"
    finally:
        await hearing.close()


async def test_responders_come_back_to_an_emptied_server(server: RedisServer, start: Start) -> None:
    """Responders that do nothing but wait for questions are asked again after FLUSHALL, by whoever asks."""
    asker, answerer = await start(), await start()
    async with answerer.serve("ask.me", "g", echo):
        assert (await asker.request("ask.me", b"before", {}, 5.0)).body == b"before"
        await server.ask("FLUSHALL")
        async with asyncio.timeout(20):
            while True:
                try:
                    reply = await asker.request("ask.me", b"after", {}, 5.0)
                    break
                except (NoResponder, RequestTimeout):
                    await asyncio.sleep(0.02)
        assert reply.body == b"after"


@pytest.mark.parametrize("trouble", ["hung up", "read-only"])
async def test_trouble_while_a_namespace_is_made_anew_costs_time_only(
    server: RedisServer, start: Start, trouble: str
) -> None:
    """Who finds the server emptied, and loses it while making the namespace anew, tries again while there is time."""
    engine = await start()
    find = engine._link.on_gone

    async def disturbed(wire: Wire) -> None:
        engine._link.on_gone = find
        if trouble == "hung up":
            await server.ask("CLIENT", "KILL", "TYPE", "normal")
            await find(wire)
        else:
            await server.ask("REPLICAOF", "127.0.0.1", "1")
            try:
                await find(wire)
            finally:
                await server.ask("REPLICAOF", "NO", "ONE")

    engine._link.on_gone = disturbed
    await server.ask("FLUSHALL")
    [stored] = await engine.publish([Outgoing("events.a", b"x", {}, "x")])
    assert [entry.position for entry in await engine.read(["events.>"], 0, 10)] == [stored.position]


@pytest.mark.parametrize("turns", [0, 1, 3, 10])
async def test_closing_while_the_ear_opens_leaves_nothing(server: RedisServer, start: Start, turns: int) -> None:
    """An engine that is closed while its second line is being made keeps neither a connection nor a task."""
    before = asyncio.all_tasks()
    engine = await start()
    reading = [asyncio.create_task(engine.read(["events.>"], 0, 1, wait=30.0)) for _ in range(2)]
    for _ in range(turns):
        await asyncio.sleep(0)
    await engine.close()
    for ended in await asyncio.gather(*reading, return_exceptions=True):
        assert isinstance(ended, EngineError)
    assert asyncio.all_tasks() == before
    async with asyncio.timeout(20):
        while b"name=tidings-lines" in await server.ask("CLIENT", "LIST"):
            await asyncio.sleep(0.02)


async def test_closing_ends_questions(start: Start) -> None:
    """Who asks when the engine is closed is told, and does not wait until its time is over."""
    asker, answerer = await start(), await start()
    asked, never = asyncio.Event(), asyncio.Event()

    async def silent(subject: str, body: bytes, headers: Headers) -> Reply:
        asked.set()
        await never.wait()
        return Reply(b"", {})

    async with answerer.serve("ask.me", "g", silent):
        asking = asyncio.create_task(asker.request("ask.me", b"", {}, 300.0))
        await asked.wait()
        await asker.close()
        with pytest.raises(EngineError, match="closed"):
            await asking
        never.set()
