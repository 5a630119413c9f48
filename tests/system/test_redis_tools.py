"""The first exercises of the chapter, with the real `redis-cli` beside us: who listens, and who speaks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo_system import clean_environment
from redis_server import RedisServer
from started import PATIENCE, Started, eventually

pytestmark = pytest.mark.redis

APP = """
import logging
import tidings

log = logging.getLogger("app")
bus = tidings.Bus("app")

@bus.listen("channel21")
async def hear(word: str) -> None:
    log.info("heard %r", word)

@bus.on("events.todo.newitem", group="save")
async def save(item: dict, about: tidings.Message) -> None:
    log.info("saved %s with id %s", item["item"], about.id)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "server")
    asyncio.run(server.start())
    yield server
    server.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def redis_cli(server: RedisServer, *words: str) -> str:
    """What redis-cli prints."""
    command = ["redis-cli", "-p", str(server.port), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout.strip()


def tidings(server: RedisServer, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    environment = {**clean_environment(), "TIDINGS_URL": server.url}
    command = [sys.executable, "-m", "tidings", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_redis_cli_speaks_to_our_listeners(server: RedisServer, folder: Path) -> None:
    """`redis-cli PUBLISH channel21 ping` has 0 receivers, then 1: `@bus.listen("channel21")` hears it."""
    assert redis_cli(server, "PUBLISH", "channel21", "ping") == "0"
    with Started("run", "app:bus", cwd=folder, environment={"TIDINGS_URL": server.url}) as worker:
        worker.until("ready")
        assert redis_cli(server, "PUBLISH", "channel21", "ping") == "1"
        worker.until("heard 'ping'")


def test_redis_cli_hears_us(server: RedisServer) -> None:
    """`tidings pub channel21 ping --count 3` prints 0 receivers, then 1: `redis-cli SUBSCRIBE` gets the bare word."""
    unheard = tidings(server, "pub", "channel21", "ping", "--count", "3", "--interval", "10ms")
    assert (unheard.returncode, unheard.stdout) == (5, "0 receivers: nobody listening\n" * 3), unheard.stderr
    command = ["redis-cli", "-p", str(server.port), "SUBSCRIBE", "channel21"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
        assert subscriber.stdout is not None
        try:
            eventually(lambda: redis_cli(server, "PUBSUB", "NUMSUB", "channel21").endswith("1"))
            heard = tidings(server, "pub", "channel21", "ping", "--count", "3", "--interval", "10ms")
            assert (heard.returncode, heard.stdout) == (0, "1 receiver\n" * 3), heard.stderr
            said = [subscriber.stdout.readline().strip() for _ in range(12)]
            assert said[3:] == ["message", "channel21", "ping"] * 3
        finally:
            subscriber.kill()


def test_redis_cli_publishes_events(server: RedisServer, folder: Path) -> None:
    """`FCALL tidings_publish` is a publisher: its event is handled by the group; with an id, once."""
    with Started("run", "app:bus", cwd=folder, environment={"TIDINGS_URL": server.url}) as worker:
        worker.until("ready")
        call = ("FCALL", "tidings_publish", "1", "tidings", "events.todo.newitem")
        assert redis_cli(server, *call, '{"item": "from outside"}') == "1"
        worker.until("saved from outside")
        with_id = (*call, '{"item": "once"}', "id-17", '{"ce-id": "id-17"}')
        assert redis_cli(server, *with_id) == redis_cli(server, *with_id) == "2"
        worker.until("saved once with id id-17")
        assert "none of the roots" in redis_cli(server, *call[:4], "elsewhere.x", "{}")
    assert worker.output.count("saved once") == 1


def test_the_commands_work(server: RedisServer, folder: Path) -> None:
    """`ls`, `stats`, `groups ls`, `doctor`, `health`, `url` and `dlq ls` say of a Redis what they say of a broker."""
    with Started("run", "app:bus", cwd=folder, environment={"TIDINGS_URL": server.url}) as worker:
        worker.until("ready")
        assert tidings(server, "pub", "events.todo.newitem", '{"item": "x"}').stdout == "stored seq 1\n"
        worker.until("saved x")
        for words, part in (
            (("ls",), "events.todo.newitem"),
            (("stats",), "save"),
            (("groups", "ls"), "save"),
            (("doctor",), "Redis at redis://"),
            (("health",), "Valkey 9"),
            (("url",), server.url),
            (("dlq", "ls"), ""),
        ):
            done = tidings(server, *words)
            assert (done.returncode, part in done.stdout) == (0, True), (words, done)


@pytest.mark.parametrize("words", [("app:bus",), ("--web", "app:web")])
def test_up_ends_at_a_server_that_forgets(words: tuple[str, ...], folder: Path) -> None:
    """What only a person can mend is told once, with exit code 2: nothing is started again and again."""
    web = "\nfrom starlette.applications import Starlette\nweb = Starlette(lifespan=bus.lifespan)\n"
    (folder / "app.py").write_text(APP + web)
    forgetful = RedisServer(folder / "forgetful", appendonly="no")
    asyncio.run(forgetful.start())
    try:
        with Started("up", *words, "--port", "0", cwd=folder, environment={"TIDINGS_URL": forgetful.url}) as up:
            up.until("set `appendonly yes`")
            assert up.ended() == 2
            assert "starting it again" not in up.output
    finally:
        forgetful.kill()
