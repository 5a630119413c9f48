"""The to-do system under `kill -9`: what was accepted is in the database at the end, once."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import aiosqlite
import httpx
import nats
import pytest

from demo_system import DemoSystem, clean_environment, demo, eventually

CLIENTS = 16


async def post_all(system: DemoSystem, items: list[str]) -> None:
    """Post them as fast as 16 clients can; each is accepted when this returns."""
    waiting = iter(items)

    async def client() -> None:
        async with httpx.AsyncClient() as http:
            for item in waiting:
                await system.post(http, item, id=f"post-{item}")

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def once_each(rows: list[dict[str, object]], items: list[str]) -> None:
    counted = Counter(str(row["item"]) for row in rows)
    assert {item: count for item, count in counted.items() if count > 1} == {}
    assert set(items) - set(counted) == set()


async def shares(system: DemoSystem) -> Counter[str]:
    """How many items each save worker saved, by the prefix of its log lines."""
    return Counter(line.partition("|")[0].strip() for line in system.output if "Item saved; ID:" in line)


@pytest.mark.timeout(400)
async def test_save_workers_killed_every_second_save_everything_once(tmp_path: Path) -> None:
    """3,000 items with a save worker killed every second: all saved exactly once, shared by the three, none dead."""
    items = [f"item {n}" for n in range(3000)]
    async with demo(tmp_path / "data", "--scale", "save=3", TIDINGS_LEASE="5s") as system:
        done = asyncio.Event()

        async def killer() -> int:
            """Kill the oldest each second: so the three take turns."""
            killed = 0
            while True:
                try:
                    async with asyncio.timeout(1):
                        await done.wait()
                        return killed
                except TimeoutError:
                    if workers := system.workers("save-handler"):
                        system.kill(min(workers, key=lambda worker: worker.create_time()))
                        killed += 1

        killing = asyncio.create_task(killer())
        try:
            await post_all(system, items)
            await system.saved(set(items), within=120)
        finally:
            done.set()
        killed = await killing
        once_each(await system.items(), items)
        assert killed >= 3
        assert await system.tidings_json("dlq", "ls", "--flat") == []
        counted = await shares(system)
        save = {name: count for name, count in counted.items() if "save" in name}
        assert len(save) == 3, save
        assert min(save.values()) >= sum(save.values()) / 5, save


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["nats-server", "supervisor", "web", "save-handler"])
async def test_a_killed_part_loses_nothing(tmp_path: Path, victim: str) -> None:
    """Killed three times while items are posted, no part of the system loses or doubles an accepted item."""
    words = {"nats-server": ("nats-server",), "supervisor": ("embedded/launch.py",), "web": ("todo.web:app",)}
    items = [f"item {n}" for n in range(600)]
    async with demo(tmp_path / "data", TIDINGS_LEASE="5s") as system:

        def victims() -> list[int]:
            return [process.pid for process in system.processes(*words.get(victim, (victim,)))]

        async def kill_one() -> None:
            """Kill it in the middle of work, and wait until there is another one."""
            printed = len(system.output)
            await eventually(lambda: len(system.output) > printed + 40, 60)
            await eventually(victims, 30)
            target = system.processes(*words.get(victim, (victim,)))[-1]
            system.kill(target)
            await eventually(lambda: set(victims()) - {target.pid}, 30, lambda: system.text[-4000:])

        async def killer() -> None:
            for _ in range(3):
                await kill_one()

        await asyncio.gather(post_all(system, items), killer())
        rows = await system.saved(set(items), within=90)
        once_each(rows, items)
        assert await system.stop() == 0
        await eventually(lambda: not system.processes(), 10, lambda: str(system.processes()))


async def test_items_wait_for_the_save_handler(tmp_path: Path) -> None:
    """50 items posted while only the audit runs are not lost: started again with save, all are saved, once each."""
    items = [f"waiting {n}" for n in range(50)]
    async with demo(tmp_path / "data", "--with", "audit") as system:
        await post_all(system, items)
        await eventually(lambda: sum("AUDIT @" in line for line in system.output) >= 50, 20, lambda: system.text)
        assert await system.items() == []
        assert await system.stop() == 0
    async with demo(tmp_path / "data") as system:
        once_each(await system.saved(set(items)), items)


async def test_a_foreign_client_is_served(tmp_path: Path) -> None:
    """Plain nats-py on `tidings url` publishes JSON without headers: its item is saved and it hears of it."""
    async with demo(tmp_path / "data") as system:
        status, url, error = await system.tidings("url")
        assert status == 0, error
        client = await nats.connect(url.strip())
        try:
            heard = await client.subscribe("events.todo.itemsaved")
            await client.flush()
            await client.publish("events.todo.newitem", json.dumps({"item": "from outside"}).encode())
            saved = json.loads((await heard.next_msg(timeout=20)).data)
        finally:
            await client.close()
        assert saved["item"] == "from outside"
        assert [row["item"] for row in await system.items()] == ["from outside"]


async def test_a_poison_item_is_redriven_once(tmp_path: Path) -> None:
    """What the database refuses ends as a dead letter that tells why; redriven after the mend, it is saved once."""
    async with demo(tmp_path / "data", TIDINGS_RETRY="attempts=3,first=0.1,most=0.2") as system:
        database = next((tmp_path / "data").glob("*.sqlite3"))
        await execute(
            database,
            "CREATE TRIGGER refuse BEFORE INSERT ON todo_items WHEN NEW.item = 'poison' "
            "BEGIN SELECT RAISE(ABORT, 'refused by trigger'); END",
        )
        async with httpx.AsyncClient() as http:
            await system.post(http, "poison")
            await system.post(http, "harmless")

        async def dead() -> bool:
            return bool(await system.tidings_json("dlq", "ls", "--flat"))

        await eventually(dead, 30, lambda: system.text)
        assert [row["item"] for row in await system.items()] == ["harmless"]
        listed = (await system.tidings("dlq", "ls"))[1]
        assert "handler_error" in listed
        assert "refused by trigger" in listed
        [letter] = await system.tidings_json("dlq", "ls", "--flat")
        assert letter["attempts"] == 3
        shown = (await system.tidings("dlq", "show", letter["key"]))[1]
        assert "Traceback" in shown
        assert '{"item":"poison"' in shown
        await execute(database, "DROP TRIGGER refuse")
        status, _, error = await system.tidings("dlq", "redrive", letter["key"], "--yes")
        assert status == 0, error
        await system.saved({"poison"})
        assert [row["item"] for row in await system.items()].count("poison") == 1
        assert await system.tidings_json("dlq", "ls", "--flat") == []


async def test_undecodable_bytes_do_not_stop_the_next_message(tmp_path: Path) -> None:
    """Raw bytes on the subject become dead letters `undecodable`; the item behind them is saved."""
    async with demo(tmp_path / "data") as system:
        _, url, _ = await system.tidings("url")
        client = await nats.connect(url.strip())
        try:
            await client.publish("events.todo.newitem", b"\xff\xfenot json")
            await client.publish("events.todo.newitem", b'{"item":"after"}')
            await client.flush()
        finally:
            await client.close()
        await system.saved({"after"})

        async def dead() -> bool:
            letters = await system.tidings_json("dlq", "ls", "--flat")
            return {(letter["group"], letter["reason"]) for letter in letters} == {
                ("save-handler", "undecodable"),
                ("audit-handler", "undecodable"),
            }

        await eventually(dead, 20, lambda: system.text)


NEW_HANDLER = """
import tidings

bus = tidings.Bus("late")


@bus.on("events.todo.newitem", group="late-known")
async def known(message: tidings.Message) -> None:
    print("KNOWN", message.data, flush=True)


@bus.on("events.other.>", group="late-unclaimed")
async def unclaimed(message: tidings.Message) -> None:
    print("UNCLAIMED", message.data, flush=True)
"""


async def test_a_handler_that_joins_a_running_system(tmp_path: Path) -> None:
    """A new group gets what nobody had claimed, and begins now where others handle already; `explain` says why."""
    async with demo(tmp_path / "data") as system:
        async with httpx.AsyncClient() as http:
            before = await system.post(http, "before")
        await system.saved({"before"})
        assert (await system.tidings("pub", "events.other.thing", '{"n":1}'))[0] == 0
        (tmp_path / "late.py").write_text(NEW_HANDLER)
        heard: list[str] = []
        late = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tidings", "run", "late:bus"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            env={**clean_environment(), "TIDINGS_URL": f"embedded:{system.data}"},
        )

        async def listen() -> None:
            assert late.stdout is not None
            while line := await late.stdout.readline():
                heard.append(line.decode())

        listening = asyncio.create_task(listen())
        try:
            await eventually(lambda: any("UNCLAIMED" in line for line in heard), 20, lambda: str(heard))
            async with httpx.AsyncClient() as http:
                await system.post(http, "after")
            await eventually(lambda: any("KNOWN" in line and "after" in line for line in heard), 20, lambda: str(heard))
            assert not any("before" in line for line in heard)
            status, explained, error = await system.tidings("explain", before)
            assert status == 0, error
            assert "not wanted" in explained
            assert "save-handler" in explained
        finally:
            late.terminate()
            assert await asyncio.wait_for(late.wait(), 20) == 0
            await listening


async def execute(database: Path, statement: str) -> None:
    async with aiosqlite.connect(database) as connection:
        await connection.execute("PRAGMA busy_timeout = 10000")
        await connection.execute(statement)
        await connection.commit()
