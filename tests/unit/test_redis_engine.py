"""The Redis engine beyond the conformance suite: a real Valkey that is emptied, full, read-only, forbidding."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from redis_server import RedisServer
from tidings.engine import Claim, Dead, Done, Failure, Group, Headers, Lagged, Outgoing, Release, Reply, Signal
from tidings.engines.redis import Address, RedisEngine, probe
from tidings.engines.redis.library import library
from tidings.engines.redis.permissions import rule
from tidings.errors import ConfigError, EngineUnavailable, InvalidMessage, NoNamespace, StoreFull, Unsuitable

if TYPE_CHECKING:
    from on_redis import Start

pytest_plugins = ("on_redis",)

FAILURE = Failure("ValueError", "not today")
GROUP = Group("g", (Claim("events.>"),), lease=5.0)


def message(body: str, subject: str = "events.a") -> Outgoing:
    return Outgoing(subject, body.encode(), {}, body)


async def eventually(condition: Callable[[], Awaitable[bool]], within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_server_without_a_file_is_refused(tmp_path: Path, start: Start) -> None:
    """What keeps messages in memory only is refused at start with the setting to make, unless that was accepted."""
    forgetful = RedisServer(tmp_path / "forgetful", appendonly="no")
    await forgetful.start()
    try:
        with pytest.raises(Unsuitable, match="set `appendonly yes`"):
            await start(forgetful.address)
        engine = await start(replace(forgetful.address, durability="none"))
        assert not engine.durable
    finally:
        forgetful.kill()


async def test_a_server_that_evicts_is_refused(server: RedisServer, start: Start) -> None:
    """A server that may throw keys away is refused, naming the policy it has and the one it needs."""
    await server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(EngineUnavailable, match=r"allkeys-lru.*noeviction"):
        await start()


async def test_a_server_that_hides_its_settings(server: RedisServer, start: Start) -> None:
    """Where CONFIG is forbidden the person who runs the server says in the URL how it keeps things."""
    await server.ask("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config")
    address = replace(server.address, user="app", password="secret")
    with pytest.raises(EngineUnavailable, match=r"\?durability=always"):
        await start(address)
    engine = await start(replace(address, durability="everysec"))
    assert engine.durable
    assert "secret" not in engine.description + repr(address)


def test_the_rule_names_what_is_used_and_nothing_else() -> None:
    """Every command that our functions call is allowed, none that they do not call, and the page shows that rule."""
    assert rule("tidings") in (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    used = {name.lower() for name in re.findall(r"redis\.call\('(\w+)'", library())}
    allowed = {word[1:] for word in rule("tidings").split() if word.startswith("+")}
    ours = allowed - used
    assert used <= allowed
    assert {word.partition("|")[0] for word in ours} == {
        *("ping", "info", "select", "config", "client", "fcall", "function", "pubsub"),
        *("subscribe", "psubscribe", "unsubscribe", "punsubscribe"),
    }


@pytest.mark.parametrize("live", [(), ("live.*", "ask.>")])
async def test_the_printed_permissions_are_enough(server: RedisServer, start: Start, live: tuple[str, ...]) -> None:
    """A user with the rights that are printed publishes, handles, listens and asks, on the channels it was given."""
    await server.ask(*rule("tidings", live).replace("SECRET", "secret").split())
    engine = await start(replace(server.address, user="tidings", password="secret"))
    await engine.declare([GROUP])
    async with engine.listen(["live.*"]) as signals:
        await engine.publish([message("a")])
        [delivery] = await engine.pull("g", 1, 5.0)
        await engine.settle([Dead(delivery, "rejected", FAILURE)])
        assert await engine.redrive(await engine.dead_letters()) == 1
        assert await engine.broadcast("live.room", b"hello", {}) == 1
        await anext(signals)
        async with engine.serve("ask.me", "g", _echo):
            assert (await engine.request("ask.me", b"x", {}, 5.0)).body == b"x"
        if live:
            with pytest.raises(EngineUnavailable, match="doctor --permissions"):
                await engine.broadcast("elsewhere.room", b"", {})
    assert (await engine.stats()).messages == 1
    assert (await engine.space()).used > 0
    assert (await server.ask("ACL", "LOG")).startswith(b"*0" if not live else b"*")


async def _echo(subject: str, body: bytes, headers: Headers) -> Reply:
    return Reply(body, headers)


async def test_a_replica_is_refused(tmp_path: Path, server: RedisServer, start: Start) -> None:
    """A server that takes no writes is refused at start, saying which one to use instead."""
    replica = RedisServer(tmp_path / "replica", replicaof=f"127.0.0.1 {server.port}")
    await replica.start()
    try:
        with pytest.raises(EngineUnavailable, match="replica"):
            await start(replica.address)
    finally:
        replica.kill()


async def test_a_server_that_becomes_read_only_heals(server: RedisServer, start: Start) -> None:
    """While a server is a replica publishing says so in time; it goes on by itself when it takes writes again."""
    engine = await start(timeout=1.5)
    await engine.publish([message("before")])
    await server.ask("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(EngineUnavailable, match="replica"):
        await engine.publish([message("meanwhile")])
    await server.ask("REPLICAOF", "NO", "ONE")
    await eventually(lambda: _takes(engine, "after"))


async def test_a_full_server_heals(server: RedisServer, start: Start) -> None:
    """With its memory used up publishers hear `StoreFull`, handling goes on, and room makes publishing work again."""
    engine = await start()
    await engine.declare([GROUP])
    await engine.publish([message("a"), message("b")])
    await server.ask("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(StoreFull, match="maxmemory"):
        await engine.publish([message("c")])
    first, second = await engine.pull("g", 2, 5.0)
    await engine.begin(second)
    await engine.settle([Dead(first, "rejected", FAILURE), Release(second)])
    assert await engine.redrive(await engine.dead_letters()) == 1
    await engine.settle([Done(delivery) for delivery in await engine.pull("g", 2, 5.0)])
    assert (await engine.space()).share > 1
    await server.ask("CONFIG", "SET", "maxmemory", "0")
    await eventually(lambda: _takes(engine, "d"))


@pytest.mark.parametrize("how", ["FLUSHALL", "restart"])
async def test_an_emptied_server_raises_an_alarm(
    server: RedisServer, start: Start, caplog: pytest.LogCaptureFixture, tmp_path: Path, how: str
) -> None:
    """A server that lost everything is noticed and said once by each connection, made anew with the groups, and gives
    no position twice; publishing, pulling and reading go on."""
    engine, other = await start(), await start()
    for each in (engine, other):
        await each.declare([GROUP])
    await engine.register("k", b"v", 0)
    [before] = await engine.publish([message("before")])
    await other.settle([Done(delivery) for delivery in await other.pull("g", 5, 5.0)])
    waiting = asyncio.create_task(other.pull("g", 5, 60.0))
    with caplog.at_level(logging.ERROR, "tidings.engines.redis"):
        if how == "FLUSHALL":
            await server.ask("FLUSHALL")
        else:
            server.kill()
            for path in sorted((tmp_path / "server").rglob("*"), reverse=True):
                if "appendonly" in str(path) and path.is_file():
                    path.unlink()
            await server.start()
        [after] = await engine.publish([message("after")])
        assert [delivery.entry.body for delivery in await waiting] == [b"after"]
    assert after.position > before.position
    record = await other.recall("k")
    assert record is not None
    assert record.value == b"v"
    assert [entry.body for entry in await other.read(["events.>"], 0, 10)] == [b"after"]
    told = [record.getMessage() for record in caplog.records if "was emptied" in record.getMessage()]
    assert 1 <= len(told) <= 2


async def test_who_only_looks_makes_nothing(server: RedisServer, start: Start) -> None:
    """Looking at a namespace that is not there is an error that names it, and leaves no key behind."""
    with pytest.raises(NoNamespace, match="'shop'"):
        await start(namespace="shop", mode="look")
    assert await server.ask("DBSIZE") == b":0\r\n"
    await start(namespace="shop")
    looking = await start(namespace="shop", mode="look")
    assert (await looking.stats()).messages == 0


async def test_two_namespaces_share_a_server(start: Start) -> None:
    """What one namespace stores, declares or writes down is no business of another one."""
    one, two = await start(namespace="one"), await start(namespace="two")
    await one.declare([GROUP])
    await one.publish([message("a")])
    await one.register("k", b"v", 0)
    assert (await two.stats()).groups == {}
    assert await two.read(["events.>"], 0, 10) == []
    assert await two.recall("k") is None


async def test_anybody_can_publish_with_one_call(server: RedisServer, start: Start) -> None:
    """`FCALL tidings_publish` stores an event from any client, once for each id, and its headers arrive."""
    engine = await start()
    await engine.declare([GROUP])
    call = ("FCALL", "tidings_publish", "1", "tidings")
    assert await server.ask(*call, "events.a", '{"n": 1}') == b":1\r\n"
    with_id = (*call, "events.a", '{"n": 2}', "id-2", json.dumps({"ce-id": "id-2"}))
    assert await server.ask(*with_id) == await server.ask(*with_id) == b":2\r\n"
    plain, told = await engine.pull("g", 5, 5.0)
    assert (plain.entry.body, plain.entry.headers) == (b'{"n": 1}', {})
    assert (told.entry.body, told.entry.headers) == (b'{"n": 2}', {"ce-id": "id-2"})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("events.a",), "FCALL tidings_publish 1 NAMESPACE"),
        (("other.a", "{}"), "none of the roots"),
        (("events.*", "{}"), "no subject"),
        (("events..a", "{}"), "no subject"),
        (("events.a b", "{}"), "no subject"),
        (("events.a", "{}", "", "[1]"), "headers"),
        (("events.a", "{}", "", "{"), "headers"),
        (("events.a", "{}", "", '{"a": 1}'), "headers"),
        (("events.a", "x" * 1_100_000), "larger"),
    ],
)
async def test_a_bad_call_stores_nothing(server: RedisServer, start: Start, words: tuple[str, ...], why: str) -> None:
    """What a foreign publisher gets wrong is refused with a sentence that says what, and nothing is stored."""
    engine = await start()
    answer = await server.ask("FCALL", "tidings_publish", "1", "tidings", *words)
    assert answer.startswith(b"-TIDINGS_INVALID")
    assert why in answer.decode()
    assert b"script" not in answer
    assert (await engine.stats()).messages == 0


async def test_everybody_hears_plain_words(server: RedisServer, start: Start) -> None:
    """What is said with headers arrives at other clients as the body alone, and at ours with the headers."""
    engine = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"SUBSCRIBE channel21\r\n")
    await reader.readuntil(b":1\r\n")
    async with engine.listen(["channel21"]) as signals:
        assert await engine.broadcast("channel21", b"ping", {"ce-source": "here"}) == 2
        ours = await anext(signals)
        await server.ask("PUBLISH", "channel21", "pong")
        theirs = await anext(signals)
    assert await reader.readexactly(40) == b"*3\r\n$7\r\nmessage\r\n$9\r\nchannel21\r\n$4\r\nping"
    assert (getattr(ours, "body", b""), getattr(ours, "headers", {})) == (b"ping", {"ce-source": "here"})
    assert (getattr(theirs, "body", b""), getattr(theirs, "headers", {})) == (b"pong", {})
    writer.close()
    await writer.wait_closed()


async def test_a_long_log_is_handed_over_in_steps(start: Start) -> None:
    """A group that comes late gets a log that is longer than one step, in order, and what is published meanwhile."""
    engine, other = await start(), await start()
    await engine.publish([message(str(number)) for number in range(2500)])
    await asyncio.gather(engine.declare([GROUP]), other.publish([message("2500")]))
    got: list[int] = []
    while len(got) < 2501:
        taken = await other.pull("g", 500, 5.0)
        await other.settle([Done(delivery) for delivery in taken])
        got += [int(delivery.entry.body) for delivery in taken]
    assert got == list(range(2501))


async def test_subjects_outside_the_roots_are_refused(start: Start) -> None:
    """An event that nobody would store is refused; roots that a later process brings are added."""
    engine = await start()
    with pytest.raises(InvalidMessage, match="roots"):
        await engine.publish([message("a", subject="orders.a")])
    more = await start(roots=("orders.>",))
    assert set(more.roots) == {"events.>", "orders.>"}
    await more.publish([message("a", subject="orders.a")])


@pytest.mark.parametrize("when", [float("nan"), float("inf"), 1e10])
async def test_a_time_that_never_comes_is_refused(start: Start, when: float) -> None:
    """A message that would wait for ever, or for no time at all, is refused before it is sent."""
    engine = await start()
    with pytest.raises(InvalidMessage, match="cannot wait"):
        await engine.publish([Outgoing("events.a", b"", {}, "x", when)])
    assert await engine.delayed(10) == []


async def test_a_server_that_starts_at_the_same_time_is_waited_for(server: RedisServer, start: Start) -> None:
    """A process that comes up before its server opens as soon as the server answers, and is no worse for it."""
    server.kill()
    opening = asyncio.ensure_future(start())
    await asyncio.sleep(0)
    await server.start()
    engine = await opening
    await engine.publish([message("a")])


async def test_a_restart_is_told_in_two_lines(
    server: RedisServer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is killed and started again is one warning and one word that it is back, for both connections."""
    caplog.set_level(logging.INFO, "tidings.engines.redis")
    engine = await start()
    async with engine.listen(["room"]) as signals:
        server.kill()
        await server.start()
        assert isinstance(await anext(signals), Lagged)  # so the second connection stands again
        await engine.stats()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[2] for line in lines] == [
        "the connection was lost (Connection closed by server); connecting again",
        "connected again",
    ]


async def test_a_wrong_password_is_said(server: RedisServer, start: Start) -> None:
    """A password that the server does not take is an error that says so, without showing it."""
    await server.ask("ACL", "SETUSER", "app", "on", ">right-one", "~*", "&*", "+@all")
    with pytest.raises(EngineUnavailable, match=r"(?i)password") as caught:
        await start(replace(server.address, user="app", password="wrong-one"))
    assert "wrong-one" not in str(caught.value)
    assert (await probe(server.address)).startswith("Valkey 9")


async def test_an_answer_never_goes_to_another_question(server: RedisServer, start: Start) -> None:
    """Callers that give up in the middle, over and over, leave every later answer with its own question."""
    engine = await start()
    await engine.publish([message(str(number)) for number in range(50)])
    for turn in range(100):
        giving_up = [asyncio.create_task(engine.read(["events.>"], place, 1)) for place in range(5)]
        for _ in range(turn % 7):
            await asyncio.sleep(0)
        for task in giving_up:
            task.cancel()
        [entry] = await engine.read(["events.>"], turn % 50, 1)
        assert entry.position == turn % 50 + 1
        await asyncio.gather(*giving_up, return_exceptions=True)


async def test_garbage_makes_nobody_deaf(server: RedisServer, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """What anybody says on the channels of our own, and is none of our words, is passed over with a word where it
    stands for a question; the next question and its answer are heard as ever."""
    engine = await start()
    async with engine.serve("ask.me", "g", _echo):
        await engine.request("ask.me", b"1", {}, 5.0)
        channels = re.findall(r"{tidings}:(?:to:\S+|anew)", (await server.ask("PUBSUB", "CHANNELS")).decode())
        assert len(channels) == 3
        for channel in channels:
            await server.ask("PUBLISH", channel, "who is there?")
        assert (await engine.request("ask.me", b"2", {}, 2.0)).body == b"2"
    assert caplog.text.count("is no question of ours") == 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "forged",
    [
        {"subject": "ask.me", "asker": "prices", "id": "0" * 16},
        {"subject": "ask.me", "asker": "0" * 16 + ":seat:1\n", "id": "0" * 16},
        {"subject": "ask.me", "reply": "prices", "number": 1},
        {"subject": "ask.me", "asker": "0" * 16, "id": "prices"},
        {"subject": "ask.another", "asker": "0" * 16, "id": "0" * 16},
    ],
)
async def test_a_forged_question_makes_nobody_speak(server: RedisServer, start: Start, forged: dict[str, Any]) -> None:
    """A question that names anything but an asker, or what is served elsewhere, reaches no responder: what responders
    say cannot be led to a channel of the application's own."""
    engine, asked = await start(), list[bytes]()

    async def answer(subject: str, body: bytes, headers: Headers) -> Reply:
        asked.append(body)
        return Reply(body, {})

    async with engine.listen(["prices"]) as signals, engine.serve("ask.me", "g", answer):
        [seat] = re.findall(r"{tidings}:to:\w+:seat:\d+", (await server.ask("PUBSUB", "CHANNELS")).decode())
        told = f"ask.me g\n{json.dumps(forged)}\n{{}}\nforged"
        assert await server.ask("PUBLISH", seat, told) == b":1\r\n"
        assert (await engine.request("ask.me", b"real", {}, 5.0)).body == b"real"
        assert asked == [b"real"]
        await engine.broadcast("prices", b"true", {})
        heard = await anext(signals)
        assert isinstance(heard, Signal)
        assert heard.body == b"true"


async def test_nobody_answers_in_the_name_of_another(server: RedisServer, start: Start) -> None:
    """An answer under a guessed id, on the asker's own channel, is passed over: the true one arrives."""
    engine, channel = await start(), list[str]()

    async def answer(subject: str, body: bytes, headers: Headers) -> Reply:
        channel.extend(re.findall(r"{tidings}:to:\S+:answers", (await server.ask("PUBSUB", "CHANNELS")).decode()))
        for id in ("1", "2", "0" * 16, "\u00e9"):
            assert await server.ask("PUBLISH", channel[0], f"{id}\n{{}}\nforged") == b":1\r\n"
        return Reply(b"true", {})

    async with engine.serve("ask.me", "g", answer):
        assert (await engine.request("ask.me", b"", {}, 5.0)).body == b"true"


async def _takes(engine: RedisEngine, body: str) -> bool:
    try:
        await engine.publish([message(body)])
    except (EngineUnavailable, StoreFull):
        return False
    return True


def test_what_the_url_says() -> None:
    """Schemes, ports, databases, namespaces and the durability option; passwords are never shown."""
    from tidings.engines import mask, parse, redis_address

    place = parse("rediss://user:p%40ss@shop.example/2/orders?durability=always")
    address = redis_address(place)
    assert (place.kind, place.namespace) == ("redis", "orders")
    assert address == Address("shop.example", 6379, "user", "p@ss", tls=True, database=2, durability="always")
    assert redis_address(parse("valkey://localhost:7000")) == Address("localhost", 7000)
    assert parse("valkey://localhost:7000").namespace == "tidings"
    assert parse("redis://localhost/shop", "other").namespace == "other"
    assert "p%40ss" not in mask("rediss://user:p%40ss@shop.example/orders") + place.shown
    for url in ("redis://", "redis://a,b/shop", "redis://a:x/shop", "redis://a/shop?durability=maybe", "redis://a?x=1"):
        with pytest.raises(ConfigError):
            parse(url)
