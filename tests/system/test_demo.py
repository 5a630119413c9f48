"""`tidings demo` as somebody meets it: started, used, broken, stopped, started again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from mounted import tmpfs
from started import PATIENCE, Started, all_gone, eventually, gone
from tidings import embedded


class Demo:
    """A demo that runs, with its data in one folder."""

    def __init__(self, folder: Path, *words: str, environment: dict[str, str] | None = None) -> None:
        self.data = folder / "data of the demo"
        self.started = Started(
            *("demo", "--data", str(self.data), "--no-open", *words),
            cwd=folder,
            environment={"TIDINGS_DATABASE_URL": "", **(environment or {})},
        )

    def ready(self) -> Demo:
        self.page = self.started.until("Ready after").split()[-1]
        return self

    def add(self, item: str) -> str:
        body = json.dumps({"item": item}).encode()
        request = Request(f"{self.page}/todo", body, {"Content-Type": "application/json"})
        return str(json.load(urlopen(request, timeout=PATIENCE))["id"])

    def items(self) -> list[str]:
        return [row["item"] for row in json.load(urlopen(f"{self.page}/todo", timeout=PATIENCE))]

    def stop(self) -> int:
        with all_gone(self.started.children()):
            self.started.signal(signal.SIGINT)
            return self.started.ended()

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        self.started.__exit__()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    eventually(lambda: embedded.locate(tmp_path / "data of the demo") is None)


def test_what_the_log_tells_to_type_can_be_typed(folder: Path) -> None:
    """Where `tidings` is not on the PATH, as in a clone, the line of a dead letter names a command that shows it."""
    with Demo(folder, "--port", "0", environment={"PATH": os.defpath}) as demo:
        demo.ready()
        environment = {**os.environ, "PATH": os.defpath, "TIDINGS_URL": f"embedded:{demo.data}"}
        publish = [sys.executable, "-m", "tidings", "pub", "events.todo.newitem", '{"item": 5}']
        subprocess.run(publish, env=environment, check=True, capture_output=True, timeout=PATIENCE)
        told = re.search(r"dead letter, invalid \((.+ dlq show \S+)\): ", demo.started.until("dead letter"))
        assert told
        done = subprocess.run(shlex.split(told[1]), env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert "Expected `str`, got `int`" in done.stdout
        assert demo.stop() == 0


def test_another_engine_is_told_how_it_is_used(folder: Path) -> None:
    """`--engine redis` says that the demo brings its servers along, and how the system runs on one of the user's."""
    with Demo(folder, "--engine", "redis") as demo:
        assert "TIDINGS_URL=redis://host:6379 ../tidings up todo.handlers:bus" in demo.started.until("not one of")
        assert demo.started.ended() == 2


def test_an_item_is_saved_audited_and_survives(folder: Path) -> None:
    """First start: an item goes the whole way. Ctrl-C: exit code 0, nobody left. Second start: quick, all there."""
    began = time.monotonic()
    with Demo(folder, "--port", "0") as demo:
        assert demo.started.until("") == "Starting the to-do system …\n"
        demo.ready()
        first = time.monotonic() - began
        demo.add("write the docs")
        demo.started.until("AUDIT")
        eventually(lambda: demo.items() == ["write the docs"])
        assert demo.stop() == 0
    assert (demo.data / "todo.sqlite3").exists()
    assert "AUDIT" in (demo.data / "log" / "demo.log").read_text()
    eventually(lambda: embedded.locate(demo.data) is None)
    began = time.monotonic()
    with Demo(folder, "--port", "0").ready() as again:
        assert time.monotonic() - began < max(5.0, 1.5 * first)  # slow only where the machine was slow before
        assert again.items() == ["write the docs"]
        assert again.stop() == 0


def test_it_says_what_one_needs_to_know(folder: Path) -> None:
    """The URL, where data and logs are, how to stop, and three commands to try, all before anything is asked."""
    with Demo(folder, "--port", "0", "--exit-after-ready") as demo:
        assert demo.started.ended() == 0
        out = demo.started.output
    for words in ("page   http://127.0.0.1:", f"data   {demo.data}", "logs   ", "stop   Ctrl-C", "Next, in another"):
        assert words in out
    assert f"export TIDINGS_URL='embedded:{demo.data}'" in out
    assert "TIDINGS_DATABASE_URL" not in out
    assert "tidings doctor\n" in out
    assert "Traceback" not in out


def test_what_it_says_next_works_from_any_folder(folder: Path) -> None:
    """The lines, pasted into a shell elsewhere, reach this demo and its database."""
    database = f"sqlite:///{folder / 'data of the demo' / 'other.sqlite3'}"
    with Demo(folder, "--port", "0", "--database-url", database).ready() as demo:
        demo.started.until("doctor")
        lines = [line.strip() for line in demo.started.output.partition("Next, in another")[2].splitlines()[1:]]
        done = subprocess.run(
            ["bash", "-ec", "\n".join(line for line in lines if line.startswith("export") or line.endswith("doctor"))],
            cwd="/",
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert "group save-handler" in done.stdout, done
        assert f"{database}: tables are up to date" in done.stdout
        assert demo.stop() == 0


def test_a_second_one_in_the_same_folder_is_refused(folder: Path) -> None:
    """Exit code 2 and a sentence; the first goes on, and once it has ended the folder is free."""
    with Demo(folder, "--port", "0").ready() as first:
        with Demo(folder, "--port", "0") as second:
            assert second.started.ended() == 2
            assert "is running" in second.started.output
            assert "--data DIR" in second.started.output
        first.add("still there")
        assert first.stop() == 0
    with Demo(folder, "--port", "0", "--exit-after-ready") as third:
        assert third.started.ended() == 0


def test_a_broker_that_cannot_start_is_told_once(folder: Path) -> None:
    """Before any other process is started."""
    with Demo(folder, "--port", "0", environment={"TIDINGS_NATS_SERVER": str(folder / "nowhere")}) as demo:
        assert demo.started.ended() == 4
        assert demo.started.output.count("nowhere") == 1
        assert "stopped" not in demo.started.output


@pytest.mark.mount
def test_a_disk_without_room_is_told_once(folder: Path) -> None:
    """No other process is started, and the option that chooses another folder is named."""
    with tmpfs(folder / "disk", 8) as disk:
        with Demo(folder, "--port", "0", "--data", str(disk / "data")) as demo:
            assert demo.started.ended() == 4
        assert demo.started.output.count("full") == 1
        assert "stopped" not in demo.started.output
        assert "--data DIR" in demo.started.output


def test_ctrl_c_during_the_start(folder: Path) -> None:
    """Nothing was killed in the eyes of who pressed it: each process has stopped."""
    with Demo(folder, "--port", "0") as demo:
        demo.started.until("nats-server 2")  # before it is started a Ctrl-C is one of any program
        assert demo.stop() == 0
        assert "stopped" in demo.started.output
        assert "SIGTERM" not in demo.started.output


def test_everything_lies_in_the_data_folder(folder: Path) -> None:
    """The working directory stays as it was."""
    with Demo(folder, "--port", "0", "--exit-after-ready") as demo:
        assert demo.started.ended() == 0
    assert [path.name for path in folder.iterdir()] == [demo.data.name]


def test_more_handlers_and_more_of_them(folder: Path) -> None:
    """`--with mutate` changes what was saved; `--scale save=3` runs three processes that share the work."""
    with Demo(folder, "--port", "0", "--with", "save,audit,mutate", "--scale", "save=3").ready() as demo:
        for n in range(6):
            demo.add(f"item {n}")
        eventually(lambda: len(demo.items()) == 6 and all("nice review" in item for item in demo.items()))
        demo.started.until("AUDIT", times=6)
        assert demo.started.output.count("AUDIT") == 6
        assert len(demo.started.children()) == 6
        assert demo.stop() == 0


def test_a_killed_worker_is_replaced_and_loses_nothing(folder: Path) -> None:
    """kill -9 of the save-handler: the next item is saved by another one."""
    with Demo(folder, "--port", "0").ready() as demo:
        killed = demo.started.child("--group save-handler")
        os.kill(killed, signal.SIGKILL)
        demo.add("after the crash")
        demo.started.until("was killed by SIGKILL")
        eventually(lambda: demo.items() == ["after the crash"])
        assert demo.started.child("--group save-handler") != killed
        assert demo.stop() == 0


def test_a_killed_demo_leaves_nothing_behind(folder: Path) -> None:
    """kill -9 of the demo itself: web, workers and broker end, and the next start works."""
    with Demo(folder, "--port", "0").ready() as demo:
        demo.add("before")
        children = demo.started.children()
        assert len(children) == 3
        demo.started.signal(signal.SIGKILL)
        eventually(lambda: all(map(gone, children)), 15.0)
        eventually(lambda: embedded.locate(demo.data) is None, 15.0)
    with Demo(folder, "--port", "0").ready() as again:
        eventually(lambda: again.items() == ["before"])
        assert again.stop() == 0


def test_a_port_that_was_asked_for_and_is_taken(folder: Path) -> None:
    """Exit code 2 and the option that names another; nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with Demo(folder, "--port", port) as demo:
            assert demo.started.ended() == 2
            assert f"port {port} on 127.0.0.1 is taken" in demo.started.output
            assert "--port" in demo.started.output


def test_the_usual_port_is_taken(folder: Path) -> None:
    """A free one is found, and that is said."""
    with ExitStack() as stack:
        with suppress(OSError):  # somebody else has it: as good
            stack.enter_context(socket.create_server(("127.0.0.1", 8080)))
        with Demo(folder, "--exit-after-ready") as demo:
            assert "so the page is on" in demo.started.until("Port 8080 is taken")
            assert demo.started.ended() == 0


def test_a_folder_that_cannot_be_used(folder: Path) -> None:
    """A file in its place is told in a sentence."""
    (folder / "data of the demo").write_text("")
    with Demo(folder, "--port", "0") as demo:
        assert demo.started.ended() == 2
        assert "Traceback" not in demo.started.output
        assert "data of the demo" in demo.started.output
    (folder / "data of the demo").unlink()
