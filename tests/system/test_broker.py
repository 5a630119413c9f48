"""The embedded broker under every death there is: of its server, its supervisor, its users, one or all at once.

After each test the directory must be without a server by itself: an orphan fails the test that left it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from brokers import (
    Client,
    api,
    broker_directory,
    connected,
    kill,
    make_streams,
    replaced,
    server,
    soon,
    store,
    stored,
    supervisor,
)
from tidings import embedded
from tidings.embedded import broker as broker_module
from tidings.errors import BrokerError, Closed

pytest_plugins = ("brokers",)


async def test_four_that_come_at_once_share_one_server(directory: Path, client: Callable[[], Client]) -> None:
    """Four processes that start at the same moment meet on one server, and the last one out stops it."""
    clients = [client() for _ in range(4)]
    urls = {await asyncio.to_thread(one.url) for one in clients}
    assert len(urls) == 1
    assert (directory / "log" / "supervisor.log").read_text().count("is ready") == 1
    for one in clients[:3]:
        assert one.leave() == 0
    assert embedded.locate(directory) is not None
    assert clients[3].leave() == 0
    await soon(lambda: server(directory) is None, "the last one out stops the server")
    assert embedded.locate(directory) is None


async def test_shares_of_one_process_are_counted_one_by_one(directory: Path) -> None:
    """Two brokers of one process are two shares: closing one (twice) leaves the other its server."""
    one = await embedded.start(directory)
    other = await embedded.start(directory, user="admin")
    running = server(directory)
    await one.close()
    await one.close()
    assert (await other.locate()).user == "admin"
    assert server(directory) == running
    with pytest.raises(Closed):
        await one.locate()
    await other.close()


async def test_the_port_and_the_data_stay_over_a_restart(directory: Path) -> None:
    """A broker that was stopped in order comes back on its old port with everything it had stored."""
    async with await embedded.start(directory) as broker:
        first = broker.address
        await make_streams(first)
        async with connected(first) as nc:
            await store(nc, "events.x", b"1")
    await soon(lambda: server(directory) is None, "stopped")
    async with await embedded.start(directory) as broker:
        assert broker.address == first
        assert await stored(broker.address) == 1


async def test_a_start_that_is_cancelled_leaves_nothing(directory: Path) -> None:
    """Cancelling `start` at any point gives up the share; the fixture then sees that no server stays."""
    for pause in (0.0, 0.05, 0.1, 0.2):
        task = asyncio.create_task(embedded.start(directory))
        done, _ = await asyncio.wait({task}, timeout=pause)
        if done:
            await task.result().close()
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_locating_starts_and_makes_nothing(directory: Path) -> None:
    """`locate` says where a broker answers, and None without one, leaving the disk as it was."""
    assert embedded.locate(directory) is None
    assert not directory.exists()
    async with await embedded.start(directory):
        address = embedded.locate(directory)
        assert address is not None
        assert address.user == "publish"
        assert address.password not in f"{address!r} {address}"


async def test_two_directories_have_two_brokers(tmp_path: Path) -> None:
    """Brokers of two directories know nothing of each other; odd characters in a path are none of their business."""
    with broker_directory(tmp_path / "a b") as one, broker_directory(tmp_path / 'c"$HOME\\ü#{}') as two:
        async with await embedded.start(one) as first, await embedded.start(two) as second:
            assert first.address.port != second.address.port
            await make_streams(first.address)
            async with connected(second.address) as nc:
                listed = await api(nc, "STREAM.NAMES")
                assert listed is not None
                assert listed["total"] == 0


# Deaths


async def test_a_killed_server_comes_back_with_all_that_was_acknowledged(directory: Path) -> None:
    """`kill -9` of nats-server amid publishing: the same port again, and every acknowledged event is still there."""
    async with await embedded.start(directory) as broker:
        await make_streams(broker.address)
        before, old = broker.address, server(directory)
        acknowledged = 0
        async with connected(broker.address) as nc:
            for number in range(200):
                if number == 150:
                    kill(old)
                try:
                    await nc.jetstream().publish("events.x", b"%d" % number, timeout=1)
                except Exception:
                    break
                acknowledged += 1
        await replaced(directory, old)
        assert await broker.locate() == before
        assert acknowledged >= 150
        assert await stored(broker.address) >= acknowledged


async def test_a_server_that_dies_again_and_again_is_brought_back(directory: Path) -> None:
    """Crashes in a row are answered with growing pauses, and `locate` waits for the end of them."""
    async with await embedded.start(directory) as broker:
        for _ in range(3):
            await replaced(directory, kill(server(directory)))
            await broker.locate()
        state = json.loads((directory / "run" / "state.json").read_text())
        assert state["restarts"] == 3


async def test_a_killed_supervisor_is_replaced_and_the_server_goes_on(directory: Path) -> None:
    """`kill -9` of the supervisor: another adopts the running server, brings it back when it dies, and stops it."""
    async with await embedded.start(directory) as broker:
        running, old = server(directory), kill(supervisor(directory))
        await soon(lambda: supervisor(directory) not in (None, old), "another supervisor")
        assert server(directory) == running
        await broker.locate()
        async with connected(broker.address) as nc:
            await nc.flush()
        kill(running)
        await replaced(directory, running)
        await broker.locate()


async def test_a_new_client_alone_replaces_a_killed_supervisor(directory: Path, client: Callable[[], Client]) -> None:
    """Somebody who joins a server without a supervisor (its other user frozen) starts one that adopts it."""
    frozen = client()
    await asyncio.to_thread(frozen.url)
    frozen.process.send_signal(signal.SIGSTOP)
    running = server(directory)
    kill(supervisor(directory))
    await soon(lambda: supervisor(directory) is None, "killed")
    async with await embedded.start(directory):
        assert server(directory) == running
    assert supervisor(directory) is not None
    frozen.kill()


async def test_supervisor_and_server_killed_together_come_back(directory: Path) -> None:
    """With both processes gone at once the clients that live start both again, on the same port."""
    async with await embedded.start(directory) as broker:
        before, old = broker.address, server(directory)
        kill(supervisor(directory))
        kill(old)
        await soon(lambda: server(directory) != old, "killed")
        assert await broker.locate() == before
        assert server(directory) != old


async def test_killed_clients_are_not_missed(directory: Path, client: Callable[[], Client]) -> None:
    """`kill -9` of one of two clients changes nothing; of the second one too, and the server goes."""
    one, two = client(), client()
    assert await asyncio.to_thread(one.url) == await asyncio.to_thread(two.url)
    running = server(directory)
    one.kill()
    async with await embedded.start(directory):
        assert server(directory) == running
    two.kill()
    await soon(lambda: server(directory) is None, "stopped after the last client was killed")


@pytest.mark.skipif(sys.platform != "linux", reason="ending an orphan without a process left to do it needs Linux")
async def test_everything_killed_at_once_leaves_no_orphan(directory: Path, client: Callable[[], Client]) -> None:
    """All clients and the supervisor die in one moment: the kernel ends the server, and the next start has the data."""
    clients = [client(), client()]
    for one in clients:
        await asyncio.to_thread(one.url)
    address = embedded.locate(directory, user="work")
    assert address is not None
    await make_streams(address)
    async with connected(address) as nc:
        await store(nc, "events.x", b"1")
    watching = supervisor(directory)
    for one in clients:
        one.process.send_signal(signal.SIGSTOP)  # so that none of them can answer the supervisor's death
    kill(watching)
    for one in clients:
        one.kill()
    await soon(lambda: server(directory) is None, "the server ends with the last holder of its lifeline")
    assert supervisor(directory) is None
    async with await embedded.start(directory) as broker:
        assert await stored(broker.address) == 1


async def test_a_stop_for_the_whole_group_of_processes_does_not_take_the_broker(directory: Path) -> None:
    """SIGTERM to supervisor and server, as service managers send it, leaves those who finish their work a broker."""
    async with await embedded.start(directory) as broker:
        watching, old = supervisor(directory), server(directory)
        assert watching is not None
        assert old is not None
        assert os.getsid(watching) == watching  # Ctrl-C and a closing terminal do not reach it
        assert os.getsid(old) == os.getsid(watching)
        os.kill(watching, signal.SIGTERM)
        os.kill(old, signal.SIGTERM)
        await replaced(directory, old)
        await broker.locate()
        assert supervisor(directory) == watching


async def test_a_frozen_server_is_reported_and_can_be_stopped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server under SIGSTOP makes `locate` end with an error in words, and is still ended with its last user. Who only
    looks is told that it is there."""
    assert embedded.silence(directory)[0] == f"no broker runs in {directory}"
    async with await embedded.start(directory) as broker:
        monkeypatch.setattr(broker_module, "PATIENCE", 0.5)
        frozen = server(directory)
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
        with pytest.raises(BrokerError, match="without progress"):
            await broker.locate()
        assert embedded.silence(directory)[0] == f"the broker in {directory} runs (pid {frozen}) and does not answer"


# Ports


async def test_a_port_taken_meanwhile_is_given_up_at_the_next_start(directory: Path) -> None:
    """Somebody else on the old port is no obstacle: the broker takes another one and says so."""
    async with await embedded.start(directory) as broker:
        port = broker.address.port
    await soon(lambda: server(directory) is None, "stopped")
    with socket.create_server(("127.0.0.1", port)):
        async with await embedded.start(directory) as broker:
            assert broker.address.port != port


async def test_a_server_that_has_to_move_after_a_crash_is_found_again(directory: Path) -> None:
    """When the port is taken between crash and restart, `locate` gives the new one."""
    async with await embedded.start(directory) as broker:
        port, watching, old = broker.address.port, supervisor(directory), server(directory)
        assert watching is not None
        os.kill(watching, signal.SIGSTOP)
        kill(old)
        await soon(lambda: server(directory) is None, "dead")
        with socket.create_server(("127.0.0.1", port)):
            os.kill(watching, signal.SIGCONT)
            assert (await broker.locate()).port != port


# What cannot start


async def test_a_config_that_fails_is_quoted_at_once(directory: Path) -> None:
    """A server that refuses its configuration ends `start` with the lines of its log, without secrets and retries."""
    began = time.monotonic()
    with pytest.raises(BrokerError) as caught:
        await embedded.start(directory, settings=embedded.BrokerSettings(sync_interval="nonsense"))
    assert time.monotonic() - began < 5
    assert "sync_interval" in str(caught.value)
    for password in json.loads((directory / "run" / "credentials.json").read_text()).values():
        assert password not in str(caught.value)
    await soon(lambda: supervisor(directory) is None, "given up")
    async with await embedded.start(directory) as broker:  # mended
        assert broker.version


async def test_a_binary_that_is_missing_or_old_is_refused_in_words(directory: Path, tmp_path: Path) -> None:
    """Nothing is started with a nats-server that is not there, or too old; the error says what to do."""
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    old.chmod(0o755)
    for binary, words in ((tmp_path / "none", "there is no nats-server"), (old, "2.9.10")):
        with pytest.raises(BrokerError, match=words) as caught:
            await embedded.start(directory, settings=embedded.BrokerSettings(binary=str(binary)))
        assert "pip install" in str(caught.value)
    assert supervisor(directory) is None


async def test_data_of_a_newer_server_is_refused(directory: Path) -> None:
    """An older binary than the one that wrote the data is refused before it touches anything."""
    async with await embedded.start(directory) as broker:
        assert (directory / "data.version").read_text().strip() == broker.version
    await soon(lambda: supervisor(directory) is None, "stopped")
    (directory / "data.version").write_text("2.99.0\n")
    with pytest.raises(BrokerError, match=r"written by nats-server 2\.99\.0"):
        await embedded.start(directory)


async def test_a_directory_that_cannot_be_used_is_refused_in_words(tmp_path: Path) -> None:
    """A path through a file gives an error that names the directory and another way."""
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match="a part of the path is a file"):
        await embedded.start(tmp_path / "file" / ".tidings")


# Secrets and rights


async def test_joining_with_other_settings_says_so(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who joins a running broker takes it as it is, and is told what differs."""
    async with await embedded.start(directory):
        settings = embedded.BrokerSettings(sync_interval="1s")
        async with await embedded.start(directory, settings=settings):
            assert "sync_interval='always'" in caplog.text


async def test_a_new_broker_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no project is found each folder gets a broker of its own: the first start there says so, loudly."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "tidings.embedded")
    for _ in range(2):
        async with await embedded.start(embedded.project_directory()):
            pass
    (told,) = [record for record in caplog.records if "a new broker" in record.getMessage()]
    assert f"{tmp_path / '.tidings'}: no folder above has a pyproject.toml" in told.getMessage()
    assert told.levelname == "WARNING"
    await soon(lambda: server(tmp_path / ".tidings") is None, "nobody is left")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert embedded.project_directory() == tmp_path / ".tidings"
