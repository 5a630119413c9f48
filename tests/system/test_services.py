"""What NATS tools see of responders: the services protocol (ADR-32), asked by a plain client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest

import tidings
from nats_server import NatsServer
from tidings.errors import RemoteError
from tidings.settings import Settings


class Count(tidings.Request[int], subject="todo.count"):
    fail: bool = False


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path)
    await server.start()
    yield server
    server.kill()


async def test_tools_find_and_count_responders(server: NatsServer) -> None:
    """PING, INFO and STATS are answered, for all services, for one by name and for one instance; the channels of single
    askers are no services; after the process has stopped nobody answers."""
    bus = tidings.Bus("todo", settings=Settings(url=server.url))

    @bus.reply(Count)
    async def count(question: Count) -> int:
        if question.fail:
            raise LookupError("no")
        return 3

    client = await nats.connect(server.url)

    async def ask(subject: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((await client.request(subject, timeout=5)).data)
        return answer

    async with bus:
        await bus.work()
        assert await bus.request(Count()) == 3
        with pytest.raises(RemoteError):
            await bus.request(Count(fail=True))
        assert len(await bus.gather(Count(), wait=5, at_least=1)) == 1
        ping = await ask("$SRV.PING")
        assert (ping["type"], ping["name"]) == ("io.nats.micro.v1.ping_response", "todo")
        [endpoint] = (await ask("$SRV.INFO.todo"))["endpoints"]
        assert endpoint == {"name": "todo-count", "subject": "todo.count", "queue_group": "todo", "metadata": {}}
        [stats] = (await ask(f"$SRV.STATS.todo.{ping['id']}"))["endpoints"]
        assert (stats["num_requests"], stats["num_errors"], stats["last_error"]) == (2, 1, "LookupError")
        assert stats["average_processing_time"] == stats["processing_time"] // 2 > 0
    with pytest.raises(nats.errors.NoRespondersError):
        async with asyncio.timeout(5):
            await client.request("$SRV.PING", timeout=5)
    await client.close()


class Outside(tidings.Request[int], subject="outside.count"):
    """Answered by somebody who knows nothing of Tidings."""


async def test_a_plain_client_speaks_asks_and_answers(server: NatsServer) -> None:
    """Channels and requests with a client that sends no headers of ours: it is heard and hears, is answered and
    answers, in plain words and plain JSON."""
    bus = tidings.Bus("todo", settings=Settings(url=server.url))
    heard: asyncio.Queue[str] = asyncio.Queue()

    @bus.listen("prices.*")
    async def hear(text: str) -> None:
        await heard.put(text)

    @bus.reply(Count)
    async def count(question: Count) -> int:
        return 3

    client = await nats.connect(server.url)
    told = await client.subscribe("news.*")

    async def answer(message: Any) -> None:
        await message.respond(b"7")

    await client.subscribe("outside.count", cb=answer)
    await client.flush()
    async with bus, asyncio.timeout(20):
        await bus.work()
        await client.publish("prices.tea", b"ping")
        assert await heard.get() == "ping"
        assert await bus.broadcast("news.tea", {"price": 4})
        assert json.loads((await told.next_msg(5)).data) == {"price": 4}
        assert json.loads((await client.request("todo.count", b"", timeout=5)).data) == 3
        assert await bus.request(Outside()) == 7
    await client.close()
