"""Who may do what on the embedded broker: nobody without a password, `publish` nothing that erases."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from brokers import api, connected, make_streams, server, store, stored, supervisor
from tidings import embedded
from tidings.embedded.probe import ProbeError, probe

pytest_plugins = ("brokers",)


async def test_secrets_are_for_this_user_only(directory: Path) -> None:
    """Nothing in the directory is open to others, and no password stands in an argument or environment."""
    async with await embedded.start(directory) as broker:
        files = [path for path in directory.rglob("*") if path.name != ".gitignore"]
        assert {path.name for path in files if path.is_file()} >= {"credentials.json", "nats-server.conf"}
        assert directory.stat().st_mode & 0o077 == 0
        for path in (directory / "run").iterdir():
            assert path.stat().st_mode & 0o077 == 0, path
        password = broker.address.password
        for pid in (supervisor(directory), server(directory)):
            shown = subprocess.run(["ps", "eww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True)
            assert str(directory) in shown.stdout
            assert password not in shown.stdout
        assert password not in "".join(path.read_text() for path in (directory / "log").iterdir())


async def test_nobody_comes_in_without_a_password(directory: Path) -> None:
    """There is no anonymous user, and none of the three takes another one's password."""
    async with await embedded.start(directory) as broker:
        address = broker.address
        for user, password in (("", ""), ("admin", address.password), ("work", "0" * 64)):
            with pytest.raises(ProbeError, match="Authorization Violation"):
                await asyncio.to_thread(probe, replace(address, user=user, password=password))


FORBIDDEN_TO_PUBLISH = (
    ("STREAM.DELETE.tidings-events", None),
    ("STREAM.PURGE.tidings-events", None),
    ("STREAM.MSG.DELETE.tidings-events", {"seq": 1}),
    ("STREAM.UPDATE.tidings-events", {"name": "tidings-events", "subjects": ["events.>"], "max_msgs": 1}),
    ("STREAM.CREATE.other", {"name": "other", "subjects": ["other"]}),
    ("STREAM.SNAPSHOT.tidings-events", {"deliver_subject": "x"}),
    ("CONSUMER.CREATE.tidings-events", {"stream_name": "tidings-events", "config": {"ack_policy": "none"}}),
    ("CONSUMER.CREATE.tidings-events.save", {"stream_name": "tidings-events", "config": {"durable_name": "save"}}),
    ("CONSUMER.DURABLE.CREATE.tidings-events.g", {"stream_name": "tidings-events", "config": {"durable_name": "g"}}),
    ("CONSUMER.DELETE.tidings-events.save", None),
    ("CONSUMER.PAUSE.tidings-events.save", {"pause_until": "2100-01-01T00:00:00Z"}),
    ("CONSUMER.RESET.tidings-events.save", None),
    ("CONSUMER.UNPIN.tidings-events.save", {"group": "g"}),
    ("CONSUMER.MSG.NEXT.tidings-events.save", None),
    ("DIRECT.GET.tidings-events", {"seq": 1}),
    ("META.LEADER.STEPDOWN", None),
    ("ACCOUNT.PURGE.TIDINGS", None),
)


async def test_the_publish_user_reads_and_writes_events_and_erases_nothing(directory: Path) -> None:
    """`publish` stores events, reads them, asks and answers; no request that changes what is stored gets through."""
    async with await embedded.start(directory) as broker, await embedded.start(directory, user="publish") as low:
        await make_streams(broker.address)
        async with connected(broker.address) as nc:
            made = await api(
                nc,
                "CONSUMER.DURABLE.CREATE.tidings-events.save",
                {"stream_name": "tidings-events", "config": {"durable_name": "save", "ack_policy": "explicit"}},
            )
            assert made is not None
            assert "error" not in made
        async with connected(low.address) as nc:
            assert await store(nc, "events.x", b"{}") == 1
            got = await api(nc, "STREAM.MSG.GET.tidings-events", {"seq": 1, "next_by_subj": "events.>"})
            assert got is not None
            assert got["message"]
            heard = await nc.subscribe("channel21")
            await nc.publish("channel21", b"ping")
            assert (await heard.next_msg(1)).data == b"ping"
            for verb, request in FORBIDDEN_TO_PUBLISH:
                assert await api(nc, verb, request) is None, verb
            await nc.publish("_t.in.save.1", b"forged")
            await nc.publish("$JS.ACK.tidings-events.save.1.1.1.1.0", b"")
            await nc.flush()
        assert await stored(broker.address) == 1
        assert await stored(broker.address, "tidings-control") == 0


async def test_the_publish_user_cannot_erase_by_way_of_reply_subjects(directory: Path) -> None:
    """The server answers to any subject without asking for rights: no answer `publish` can get is a purge request."""
    async with await embedded.start(directory) as broker, await embedded.start(directory, user="publish") as low:
        await make_streams(broker.address)
        async with connected(low.address) as nc:
            for body in (b"", b"{}"):
                await store(nc, "events.x", body)
            for act in ("PURGE", "DELETE"):
                reply = f"$JS.API.STREAM.{act}.tidings-events"
                for verb in ("DIRECT.GET", "STREAM.MSG.GET"):
                    for number in (b'{"seq":1}', b'{"seq":2}'):
                        await nc.publish(f"$JS.API.{verb}.tidings-events", number, reply=reply)
                await nc.publish("$JS.API.STREAM.INFO.tidings-events", b"", reply=reply)
                await nc.publish("$JS.API.INFO", b"", reply=reply)
                await nc.publish("events.x", b"{}", reply=reply)
            assert await store(nc, "events.x", b"last") == 5
        assert await stored(broker.address) == 5


async def test_publish_cannot_overhear_workers(directory: Path) -> None:
    """Reply subjects under the workers' own prefix and the control stream's subjects are closed to `publish`."""
    async with await embedded.start(directory) as broker, await embedded.start(directory, user="publish") as low:
        inbox = f"{broker.address.inbox_prefix}.secret"
        async with connected(low.address) as spy, connected(broker.address) as worker:
            heard = await spy.subscribe(">")
            for subject in (inbox, "_t.in.save.1", "channel"):
                await spy.subscribe(subject)
            await spy.flush()
            for subject in (inbox, "_t.in.save.1", "channel"):
                await worker.publish(subject, b"x")
            await worker.flush()
            assert (await heard.next_msg(1)).subject == "channel"
            await spy.flush()
            assert heard.pending_msgs == 0


async def test_work_and_admin_have_what_they_need_and_no_more(directory: Path) -> None:
    """`work` writes and purges the control stream but deletes no stream; `admin` does."""
    async with await embedded.start(directory) as broker, await embedded.start(directory, user="admin") as high:
        await make_streams(broker.address)
        async with connected(broker.address) as nc:
            assert await store(nc, "_t.in.save.1", b"1") == 1
            assert await store(nc, "_t.in.save.2", b"2") == 2
            for verb, request in (
                ("STREAM.MSG.DELETE.tidings-control", {"seq": 1}),
                ("STREAM.PURGE.tidings-control", {"filter": "_t.in.save.2"}),
            ):
                done = await api(nc, verb, request)
                assert done is not None
                assert done["success"] is True
            assert await api(nc, "STREAM.DELETE.tidings-events") is None
        assert await stored(broker.address) == 0
        async with connected(high.address) as nc:
            deleted = await api(nc, "STREAM.DELETE.tidings-events")
            assert deleted is not None
            assert deleted["success"] is True
