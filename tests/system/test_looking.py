"""Commands that look change nothing: no folder, no broker, no namespace and no root comes of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nats_server import NatsServer
from tidings import Bus
from tidings.engine import Outgoing
from tidings.engines.nats import NatsEngine
from tidings.engines.nats.api import JetStream
from tidings.message import new_id

pytest_plugins = ("on_nats",)

LOOKS = (
    ["stats"],
    ["ls"],
    ["tail"],
    ["tail", "--no-follow"],
    ["explain", "1"],
    ["groups", "ls"],
    ["groups", "pause", "g"],
    ["schedules", "ls"],
    ["dlq", "ls"],
    ["request", "app.count"],
)


def tidings(url: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidings", "--url", url, *words],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


async def streams(js: JetStream) -> dict[str, list[str]]:
    """The subjects of each stream."""
    listed: list[dict[str, Any]] = (await js.call("STREAM.LIST")).get("streams") or []
    return {stream["config"]["name"]: stream["config"]["subjects"] for stream in listed}


async def make_shop(server: NatsServer) -> None:
    """A namespace with roots of its own, and a schedule's tick in it."""
    engine = NatsEngine(server.locate, namespace="shop", roots=("orders.>", "_s.shop.>"))
    await engine.open()
    await engine.publish([Outgoing("_s.shop.tick", b"{}", {}, new_id())])
    await engine.close()


async def test_a_namespace_that_is_not_there_is_not_made(server: NatsServer, js: JetStream) -> None:
    """A slip in the URL is one sentence that names what is there, exit code 5, and takes no subject from anybody."""
    await make_shop(server)
    before = await streams(js)
    for words in LOOKS:
        done = tidings(f"{server.url}/typo", *words)
        assert done.returncode == 5, (words, done.stderr)
        assert done.stderr.startswith("error: there is no namespace 'typo' on "), done.stderr
        assert "there are: shop" in done.stderr
    found = json.loads(tidings(f"{server.url}/typo", "doctor", "--json").stdout)
    assert [f["state"] for f in found if "no namespace 'typo'" in f["text"]] == ["fail"]
    assert await streams(js) == before


async def test_a_namespace_is_taken_as_it_is(server: NatsServer, js: JetStream) -> None:
    """Its own roots decide what is stored, whatever the default says; no command adds one."""
    await make_shop(server)
    before = await streams(js)
    url = f"{server.url}/shop"
    assert tidings(url, "stats").returncode == 0
    assert tidings(url, "doctor").returncode == 0
    assert tidings(url, "pub", "orders.a", "{}").stdout == "stored seq 2\n"
    assert "orders.a" in tidings(url, "tail", "orders.>", "--no-follow").stdout
    everything = tidings(url, "tail", "--no-follow").stdout
    assert "orders.a" in everything
    assert "_s.shop" not in everything
    refused = tidings(url, "pub", "events.a", "{}")
    assert refused.returncode == 2
    assert "orders.>" in refused.stderr
    assert await streams(js) == before


async def test_pub_makes_a_namespace_for_an_event_only(server: NatsServer, js: JetStream) -> None:
    """An event is stored although nobody was there before; a subject with a slip makes nothing."""
    typo = tidings(f"{server.url}/shop", "pub", "event.todo.newitem", "{}")
    assert typo.returncode == 5
    assert await streams(js) == {}
    assert tidings(f"{server.url}/shop", "pub", "events.todo.newitem", "{}").stdout == "stored seq 1\n"
    assert "shop-events" in await streams(js)
    typo = tidings(f"{server.url}/shop", "pub", "event.todo.newitem", "{}")
    assert (typo.returncode, typo.stdout) == (5, "nobody listening\n")


def test_no_broker_is_started_where_none_has_run(tmp_path: Path) -> None:
    """Exit code 5, the folder is named, and it is not even made."""
    folder = tmp_path / "project" / ".tidings"
    for words in (*LOOKS, ["tail", "channel21", "--no-follow"]):
        done = tidings(f"embedded:{folder}", *words)
        assert done.returncode == 5, (words, done.stderr)
        assert f"no broker has run in {folder} yet" in done.stderr
        assert not folder.exists()


async def test_tail_ends_quietly_when_nobody_reads_any_more(server: NatsServer) -> None:
    """`tidings tail … | head -1`: not a word about pipes or groups of errors."""
    url = f"{server.url}/shop"
    tidings(url, "pub", "events.a", "{}", "--count", "1000")
    process = subprocess.Popen(
        [sys.executable, "-m", "tidings", "--url", url, "tail", "--since", "1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert b"events.a" in process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(30) == 1
    assert [line for line in said.splitlines() if not line.startswith("following")] == []


async def test_what_no_running_worker_listens_to_is_explained(server: NatsServer) -> None:
    """Of a message that the only worker hands back, `explain` says that no running worker has it."""
    old, new = (Bus(name, url=server.url) for name in ("old", "new"))

    @old.on("events.old", group="save")
    @new.on("events.new", group="save")
    async def save(body: dict[str, Any]) -> None: ...

    async with old:
        await old.publish("events.old", {})
    async with new:
        await new.work()

        async def why() -> str:
            (entry,) = await new.engine.read([">"], 0, 1)
            return (await new.engine.states(entry))["save"].detail

        async with asyncio.timeout(30):
            while "none listens to its subject" not in await why():
                await asyncio.sleep(0.05)
