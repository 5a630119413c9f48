"""Channels, requests and answers: nothing is stored."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from tidings.engine import LISTENER_ROOM, Headers, Lagged, Reply, Signal
from tidings.errors import EngineUnavailable, NoResponder, RequestTimeout, TooLarge

from .case import case, eventually
from .steps import find, heard, introduce, raising
from .world import WiredWorld, World


@case("seam")
async def entered_means_ready(world: World) -> None:
    """What is said right after entering `listen` is heard, with its channel, body and headers, in order."""
    speaker, hearer = await world.engine(), await world.engine()
    async with hearer.listen(["live.room"]) as signals:
        said = await hearer.broadcast("live.room", b"mine", {})
        assert said is None or said == 1
        assert (await heard(signals)).body == b"mine"
        await introduce(speaker, "live.room", signals)
        for number in range(20):
            said = await speaker.broadcast("live.room", str(number).encode(), {"n": str(number)})
            assert said is None or said == 1
        got = [await heard(signals) for _ in range(20)]
    assert [(s.channel, s.body) for s in got] == [("live.room", str(n).encode()) for n in range(20)]
    assert [s.headers["n"] for s in got] == [str(n) for n in range(20)]


@case("seam")
async def all_listeners_hear(world: World) -> None:
    """Every listener whose filter matches hears a broadcast, once even if two of its filters match."""
    speaker, one, two = await world.engine(), await world.engine(), await world.engine()
    async with (
        one.listen(["live.*.x", "live.a.>"]) as both,
        one.listen(["live.a.x"]) as exact,
        two.listen(["live.>"]) as rest,
    ):
        await introduce(speaker, "live.a.x", both, exact, rest)
        for channel in ("live.a.x", "live.b.x", "live.a.y", "live.end.x", "live.a.x"):
            await speaker.broadcast(channel, b"", {})
        assert await _until(both, 5) == ["live.a.x", "live.b.x", "live.a.y", "live.end.x", "live.a.x"]
        assert await _until(exact, 2) == ["live.a.x", "live.a.x"]
        assert await _until(rest, 5) == ["live.a.x", "live.b.x", "live.a.y", "live.end.x", "live.a.x"]


@case("seam")
async def unheard_is_told(world: World) -> None:
    """A broadcast nobody listens to says so (or that it cannot know), and is not kept for who listens later."""
    speaker, hearer = await world.engine(), await world.engine()
    assert not await speaker.broadcast("live.room", b"early", {})
    async with hearer.listen(["live.room"]) as signals:
        await introduce(speaker, "live.room", signals)
        await speaker.broadcast("live.room", b"heard", {})
        assert (await heard(signals)).body == b"heard"

    async def unheard() -> bool:
        return not await speaker.broadcast("live.room", b"late", {})

    await eventually(unheard, "leaving `listen` ends the listening")


@case("seam")
async def giving_up_on_a_signal_loses_none(world: World) -> None:
    """Cancelling the wait for the next signal leaves the listener as it was: what is said later is heard."""
    speaker, hearer = await world.engine(), await world.engine()
    async with hearer.listen(["live.room"]) as signals:
        await introduce(speaker, "live.room", signals)
        waiting = asyncio.ensure_future(anext(signals))
        await world.wait(world.moment)
        waiting.cancel()
        await asyncio.wait({waiting})
        await speaker.broadcast("live.room", b"later", {})
        assert (await heard(signals)).body == b"later"


@case("seam")
async def slow_listener_hurts_nobody(world: World) -> None:
    """A listener that takes nothing stops neither the speaker nor the other listeners."""
    speaker, slow, quick = await world.engine(), await world.engine(), await world.engine()
    async with slow.listen(["live.flood"]), quick.listen(["live.flood"]) as signals:
        await introduce(speaker, "live.flood", signals)
        for number in range(500):
            await speaker.broadcast("live.flood", str(number).encode(), {})
            assert (await heard(signals)).body == str(number).encode()


@case("seam")
async def a_slow_listener_is_told(world: World) -> None:
    """A listener that fell too far behind is told how many of the oldest signals it missed, and hears the others."""
    speaker, slow = await world.engine(), await world.engine()
    said = LISTENER_ROOM + 500
    async with slow.listen(["live.flood"]) as signals, slow.listen(["live.end"]) as end:
        await introduce(speaker, "live.end", end)
        await introduce(speaker, "live.flood", signals)
        for first in range(0, said, 500):
            await asyncio.gather(*(speaker.broadcast("live.flood", b"%d" % n, {}) for n in range(first, first + 500)))
        await speaker.broadcast("live.end", b"", {})
        await heard(end)  # what was said before it has arrived too
        lagged = await anext(signals)
        assert isinstance(lagged, Lagged)
        assert lagged.missed is not None
        got = [int((await heard(signals)).body) for _ in range(said - lagged.missed)]
    assert 500 <= lagged.missed < said
    assert sorted(got)[-1] == said - 1


@case("seam")
async def request_is_answered(world: World) -> None:
    """A request gets the reply of its responder, headers included, also with a hundred at once."""
    asker, answerer = await world.engine(), await world.engine()

    async def respond(subject: str, body: bytes, headers: Headers) -> Reply:
        return Reply(body + b"!", {"was": subject, "got": headers["h"]})

    async with answerer.serve("ask.*", "answerers", respond):
        await find(asker, "ask.first", {"h": ""})
        replies = await asyncio.gather(
            *(asker.request(f"ask.q{n}", str(n).encode(), {"h": str(n)}, 20.0) for n in range(100))
        )
    assert [reply.body for reply in replies] == [f"{n}!".encode() for n in range(100)]
    assert [(r.headers["was"], r.headers["got"]) for r in replies] == [(f"ask.q{n}", str(n)) for n in range(100)]


@case("seam")
async def no_responder_is_known_at_once(world: World) -> None:
    """Without a responder a request raises `NoResponder` long before its timeout, also after one has left."""
    asker, answerer = await world.engine(), await world.engine()
    begun = world.clock.monotonic()
    with raising(NoResponder):
        await asker.request("ask.nobody", b"", {}, 300.0)

    async with answerer.serve("ask.nobody", "g", _echo):
        await find(asker, "ask.nobody")
        assert (await asker.request("ask.nobody", b"x", {}, 20.0)).body == b"x"

    async def gone() -> bool:
        try:
            await asker.request("ask.nobody", b"", {}, 1.0)
        except NoResponder:
            return True
        except RequestTimeout:
            return False  # in a cluster the word that somebody has left may be slower than a question
        return False

    await eventually(gone, "leaving `serve` ends the answering")
    assert world.clock.monotonic() - begun < 200


@case("seam")
async def request_times_out(world: World) -> None:
    """A responder that does not answer in time costs the asker its timeout; its late answer reaches nobody."""
    asker, answerer = await world.engine(), await world.engine()
    late = asyncio.Event()

    async def respond(subject: str, body: bytes, headers: Headers) -> Reply:
        if body == b"slow":
            await late.wait()
        return Reply(body, {})

    async with answerer.serve("ask.slow", "g", respond):
        await find(asker, "ask.slow")
        slow = asyncio.create_task(asker.request("ask.slow", b"slow", {}, 4 * world.moment))
        await world.wait(2 * world.moment)
        assert not slow.done()
        await world.wait(3 * world.moment)
        with raising(RequestTimeout):
            await slow
        late.set()
        assert (await asker.request("ask.slow", b"quick", {}, 20.0)).body == b"quick"


@case("seam", wired=True)
async def an_answer_lost_with_the_connection_is_told(world: WiredWorld) -> None:
    """Who asked and lost the connection, and perhaps the answer with it, is told at once and not when the time is
    over; the next question is answered."""
    answerer, (asker, link) = await world.engine(), await world.linked()
    asked, answering = asyncio.Event(), asyncio.Event()

    async def respond(subject: str, body: bytes, headers: Headers) -> Reply:
        if body == b"lost":
            asked.set()
            await answering.wait()
        return Reply(body, {})

    async with answerer.serve("ask.me", "g", respond):
        await find(asker, "ask.me")
        asking = asyncio.create_task(asker.request("ask.me", b"lost", {}, 300.0))
        await asked.wait()
        await world.wait(world.moment)
        link.stall()
        answering.set()
        await world.wait(world.moment)
        link.drop()
        with raising(EngineUnavailable):
            await asking
        assert (await asker.request("ask.me", b"again", {}, 20.0)).body == b"again"


@case("seam")
async def group_shares_requests(world: World) -> None:
    """Responders of one group share the requests: one of them answers each, and all take part."""
    asker, one, two = await world.engine(), await world.engine(), await world.engine()
    answered: Counter[str] = Counter()

    async def as_one(subject: str, body: bytes, headers: Headers) -> Reply:
        answered["one"] += 1
        return Reply(body, {})

    async def as_two(subject: str, body: bytes, headers: Headers) -> Reply:
        answered["two"] += 1
        return Reply(body, {})

    async with one.serve("ask.shared", "g", as_one), two.serve("ask.shared", "g", as_two):
        while len(answered) < 2:
            await find(asker, "ask.shared")
        answered.clear()
        for _ in range(60):
            await asker.request("ask.shared", b"", {}, 20.0)
    assert answered.total() == 60
    assert set(answered) == {"one", "two"}


@case("seam")
async def a_slow_answer_delays_no_other(world: World) -> None:
    """A responder works on several requests at once."""
    asker, answerer = await world.engine(), await world.engine()
    release = asyncio.Event()

    async def respond(subject: str, body: bytes, headers: Headers) -> Reply:
        if body == b"first":
            await release.wait()
        return Reply(body, {})

    async with answerer.serve("ask.many", "g", respond):
        await find(asker, "ask.many")
        first = asyncio.create_task(asker.request("ask.many", b"first", {}, 300.0))
        await world.wait(world.moment)
        assert (await asker.request("ask.many", b"second", {}, 20.0)).body == b"second"
        assert not first.done()
        release.set()
        assert (await first).body == b"first"


@case("seam")
async def live_messages_have_the_same_limit(world: World) -> None:
    """A broadcast or request over the limit raises `TooLarge` before it is sent; the connection stays usable."""
    engine = await world.engine()
    body = b"x" * (engine.max_message + 1)
    with raising(TooLarge):
        await engine.broadcast("live.room", body, {})
    async with engine.serve("ask.echo", "g", _echo):
        with raising(TooLarge):
            await engine.request("ask.echo", body, {}, 20.0)
        assert (await engine.request("ask.echo", b"small", {}, 20.0)).body == b"small"


async def _echo(subject: str, body: bytes, headers: Headers) -> Reply:
    return Reply(body, headers)


async def _until(signals: AsyncIterator[Signal | Lagged], count: int) -> list[str]:
    return [(await heard(signals)).channel for _ in range(count)]
