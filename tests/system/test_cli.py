"""The command line with a real broker and real processes, as a person uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from started import PATIENCE, Started, all_gone, eventually, gone
from tidings import embedded

APP = """
import asyncio, gc, logging, os, pathlib
import tidings

log = logging.getLogger("app")
bus = tidings.Bus("app")
HERE = pathlib.Path(__file__).parent


class Count(tidings.Request[int], subject="app.count"):
    step: int = 1


class Frozen(tidings.Request[int], subject="app.frozen"):
    pass


@bus.on("events.slow", group="slow")
async def slow(data: dict) -> None:
    log.info("began")
    while not (HERE / "go").exists():
        await asyncio.sleep(0.02)
    log.info("finished")


@bus.on("events.fragile", group="fragile", retry=tidings.NEVER)
async def fragile(data: dict) -> None:
    if not (HERE / "mended").exists():
        raise ValueError("not yet mended")
    log.info("handled %s", data)


@bus.reply(Frozen)
async def frozen(_: Frozen) -> int:
    return gc.get_freeze_count()


@bus.reply(Count)
async def count(asked: Count) -> int:
    return 41 + asked.step


async def web(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


class Place:
    """A project of somebody's: its folder, its broker, and commands run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = folder / "broker"
        self.environment = {"TIDINGS_URL": f"embedded:{self.broker}"}
        (folder / "app.py").write_text(APP)

    def start(self, *words: str, **environment: str) -> Started:
        return Started(*words, cwd=self.folder, environment=self.environment | environment)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tidings", *words],
            cwd=self.folder,
            env=os.environ | self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def popen(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tidings", *words],
            cwd=self.folder,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def out(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def broker_is_gone(self) -> bool:
        return embedded.locate(self.broker) is None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    eventually(made.broker_is_gone)


def test_what_is_said_on_a_channel_is_heard_by_who_listens(place: Place) -> None:
    """The first thing a reader of the chapter types: nobody listens, then somebody does."""
    with place.start("tail", "channel21", "--count", "2") as tail:
        tail.until("following channel21")
        assert place.out("pub", "channel21", "ping", "--count", "2", "--interval", "10ms") == "heard\nheard\n"
        assert tail.ended() == 0
        assert [line.split()[1:] for line in tail.output.splitlines()[1:]] == [["live", "channel21", "ping"]] * 2
    unheard = place.run("pub", "channel21", "ping")
    assert (unheard.returncode, unheard.stdout) == (5, "nobody listening\n")


def test_tail_follows_the_log(place: Place) -> None:
    """What is stored while it runs is printed, whoever stores it."""
    place.out("pub", "events.before", "{}")
    with place.start("tail", "events.>", "--json") as tail:
        tail.until("following events.>")
        assert place.out("pub", "events.x", '{"n": 1}') == "stored seq 2\n"
        line = json.loads(tail.until('"position"'))
        assert (line["position"], line["subject"], line["body"]) == (2, "events.x", {"n": 1})
        tail.signal(signal.SIGINT)
        assert tail.ended() == 130


def test_events_are_stored_with_nobody_there(place: Place) -> None:
    """Between two commands no broker runs, and the event is there all the same."""
    place.out("pub", "events.slow", '{"n": 1}')
    eventually(place.broker_is_gone)
    assert "events.slow" in place.out("tail", "--no-follow")


def test_run_finishes_what_it_has_begun(place: Place) -> None:
    """SIGTERM: the running handler ends, its message is done, the exit code is 0."""
    place.out("pub", "events.slow", "{}")
    with place.start("run", "app:bus") as worker:
        worker.until("began")
        worker.signal(signal.SIGTERM)
        worker.until("stopping")
        (place.folder / "go").touch()
        assert worker.ended() == 0
        assert "finished" in worker.output
        assert "Traceback" not in worker.output
    assert json.loads(place.out("explain", "1", "--json"))["groups"]["slow"]["state"] == "done"


def test_run_with_a_second_signal_ends_at_once(place: Place) -> None:
    """Who asks twice does not wait; the message comes back to the next worker."""
    place.out("pub", "events.slow", "{}")
    with place.start("run", "app:bus") as worker:
        worker.until("began")
        worker.signal(signal.SIGINT)
        worker.until("stopping")
        worker.signal(signal.SIGINT)
        assert worker.ended(5) == 130


def test_run_of_an_unknown_group(place: Place) -> None:
    """The sentence names the groups there are."""
    done = place.run("run", "app:bus", "--group", "slwo")
    assert done.returncode == 2
    assert "it has: slow, fragile" in done.stderr


def test_up_runs_everything_and_replaces_what_is_killed(place: Place) -> None:
    """Broker, workers and web application in one terminal; a killed worker is back at once."""
    began = time.monotonic()
    with place.start("up", "app:bus", "--web", "app:web", "--port", "0", "--scale", "slow=2") as up:
        url = up.until("serves app:web").split()[0]
        up.until("ready:", times=2)
        start = time.monotonic() - began
        web = int(urlopen(url, timeout=PATIENCE).read())
        assert web in up.children()
        killed = up.child("--group slow")
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        up.until("slow #2 | was killed by SIGKILL")
        up.until("ready:", times=3)
        assert time.monotonic() - began < max(2.0, start)
        os.kill(web, signal.SIGKILL)
        assert int(urlopen(url, timeout=PATIENCE).read()) != web  # waits for the new one: the socket is the parent's
        with all_gone(up.children()):
            up.signal(signal.SIGINT)
            assert up.ended() == 0
        order = [line.split(" |")[0].strip() for line in up.output.splitlines() if line.endswith("| stopped")]
        assert order[0] == "web"
        assert sorted(order[1:]) == ["slow #2", "workers"]


def test_up_killed_leaves_nothing_behind(place: Place) -> None:
    """kill -9 of the terminal's process: workers and broker end by themselves."""
    with place.start("up", "app:bus", "--scale", "slow=2") as up:
        up.until("ready:", times=2)
        children = up.children()
        assert len(children) == 2
        up.signal(signal.SIGKILL)
        eventually(lambda: all(map(gone, children)), 10.0)
        eventually(place.broker_is_gone, 10.0)


def test_up_of_an_application_that_cannot_be_imported(place: Place) -> None:
    """It ends with exit code 2 and the line that is wrong, instead of trying again for ever."""
    (place.folder / "broken.py").write_text("import tidings\nbus = tidings.Bus('')\n")
    with place.start("up", "broken:bus") as up:
        assert up.ended() == 2
        assert "broken.py, line 2" in up.output or "needs the application's name" in up.output
        assert "Traceback" not in up.output


def test_up_without_a_program_for_the_broker(place: Place) -> None:
    """One sentence says what is missing and what to install, with exit code 4."""
    with place.start("up", "app:bus", TIDINGS_NATS_SERVER="/nowhere/nats-server") as up:
        assert up.ended() == 4
        assert "there is no nats-server at /nowhere/nats-server" in up.output
        assert "Traceback" not in up.output


def test_up_ends_when_nobody_reads_any_more(place: Place) -> None:
    """`tidings up | head` leaves nothing running: the next line has nowhere to go, and that is a request to stop."""
    with place.popen("up", "app:bus") as up:
        assert up.stdout is not None
        while "ready:" not in up.stdout.readline():
            pass
        children = [child.pid for child in psutil.Process(up.pid).children()]
        up.stdout.close()
        os.kill(children[0], signal.SIGKILL)  # gives it something to say
        assert up.wait(PATIENCE) == 0
        assert up.stderr is not None
        assert "Traceback" not in up.stderr.read()


def test_run_with_workers(place: Place) -> None:
    """Several processes of one bus, stopped together."""
    with place.start("run", "app:bus", "--workers", "2") as run:
        run.until("ready:", times=2)
        with all_gone(run.children()):
            run.signal(signal.SIGTERM)
            assert run.ended() == 0


def test_a_dead_letter_is_found_mended_and_put_back(place: Place) -> None:
    """The whole way of a person: it fails, is shown with its traceback, is put back, is handled."""
    with place.start("run", "app:bus") as worker:
        worker.until("ready:")
        place.out("pub", "events.fragile", '{"n": 1}')
        eventually(lambda: json.loads(place.out("dlq", "ls", "--flat", "--json")) != [])
        (letter,) = json.loads(place.out("dlq", "ls", "--flat", "--json"))
        shown = place.out("dlq", "show", letter["key"])
        assert "ValueError: not yet mended" in shown
        assert "app.py" in shown
        (place.folder / "mended").touch()
        assert place.out("dlq", "redrive", "--all") == "1 put back to fragile\n"
        worker.until("handled {'n': 1}")
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0


def test_request_gets_an_answer(place: Place) -> None:
    """A question typed on the command line is answered by the application's handler."""
    with place.start("run", "app:bus") as worker:
        worker.until("ready:")
        assert place.out("request", "app.count", '{"step": 1}') == "42\n"
        refused = place.run("request", "app.count", '{"step": "x"}')
        assert refused.returncode == 1
        assert "error: " in refused.stderr
        worker.signal(signal.SIGTERM)
        worker.ended()
    assert place.run("request", "app.count").returncode == 5


def test_run_keeps_what_it_has_loaded_from_the_garbage_collector(place: Place) -> None:
    """Modules and classes stay anyway: a worker's full collections leave them out."""
    with place.start("run", "app:bus") as worker:
        worker.until("ready")
        assert int(place.out("request", "app.frozen", "{}")) > 10_000


def test_doctor_and_health_of_a_running_system(place: Place) -> None:
    """Healthy while a worker runs; afterwards the waiting messages and the command that handles them are named."""
    with place.start("up", "app:bus") as up:
        up.until("ready:")
        assert place.run("health").returncode == 0
        assert place.run("doctor").returncode == 0
        assert place.out("url").startswith("nats://publish:")
        up.signal(signal.SIGTERM)
        assert up.ended() == 0
    with place.start("tail") as keeps_the_broker_up:
        keeps_the_broker_up.until("following")
        place.out("pub", "events.slow", "{}")
        done = place.run("doctor", "--json")
        assert done.returncode == 1
        findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
        assert findings["group slow"]["state"] == "fail"
        assert "tidings run MODULE:BUS --group slow" in findings["group slow"]["mend"]
        keeps_the_broker_up.signal(signal.SIGINT)
        keeps_the_broker_up.ended()


def test_db_upgrade_makes_the_tables(place: Place) -> None:
    """status says behind with exit code 1, upgrade mends it, a second one finds nothing to do."""
    database = f"sqlite:///{place.folder / 'app.db'}"
    behind = place.run("db", "status", TIDINGS_DATABASE_URL=database)
    assert behind.returncode == 1
    assert "tidings db upgrade" in behind.stderr
    assert "applied" in place.run("db", "upgrade", TIDINGS_DATABASE_URL=database).stdout
    assert place.run("db", "upgrade", TIDINGS_DATABASE_URL=database).stdout == ""
    assert place.run("db", "status", TIDINGS_DATABASE_URL=database).returncode == 0
    assert "CREATE TABLE" in place.out("db", "sql", "--dialect", "postgresql")


def test_a_database_that_cannot_be_reached_is_exit_code_4(place: Place) -> None:
    """And no password is shown."""
    done = place.run("db", "status", "--database-url", "postgresql://u:s3cret@127.0.0.1:1/none")
    assert done.returncode == 4
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_cannot_be_reached_is_exit_code_4(place: Place) -> None:
    """The address is named, the password is not."""
    for scheme, words in (("nats", ("health",)), ("tls", ("health",)), ("nats", ("stats",))):
        done = place.run("--url", f"{scheme}://u:s3cret@127.0.0.1:1/ns", *words)
        assert done.returncode == 4, done.stderr
        assert "127.0.0.1:1" in done.stderr
        assert "s3cret" not in done.stderr


PTY = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


class AtTerminal:
    """A command in a terminal of its own, where Ctrl-C reaches every process of the foreground."""

    def __init__(self, place: Place, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PTY, sys.executable, "-m", "tidings", *words],
            cwd=place.folder,
            env=os.environ | place.environment | {"TERM": "xterm"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.shown = b""

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def until(self, words: str, times: int = 1) -> None:
        assert self.process.stdout is not None
        while self.shown.count(words.encode()) < times:
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, f"ended without {words!r}: {self.shown!r}"
            self.shown += piece

    def ended(self) -> int:
        assert self.process.stdout is not None
        while piece := os.read(self.process.stdout.fileno(), 4096):
            self.shown += piece
        return self.process.wait(PATIENCE)

    def __enter__(self) -> AtTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def test_ctrl_c_in_a_terminal_stops_in_order(place: Place) -> None:
    """The key reaches the process in the terminal alone: the workers are drained, not interrupted."""
    with AtTerminal(place, "up", "app:bus", "--web", "app:web", "--port", "0") as up:
        up.until("ready:")
        up.until("startup complete")
        up.type("\x03")
        assert up.ended() == 0
        assert up.shown.count(b"|\x1b[0m stopped") == 2  # each with its prefix in colour
        assert up.shown.index(b"Shutting down") < up.shown.index(b"stopping")
        assert b"Waiting for application" not in up.shown
        assert b"server process" not in up.shown
        assert b"Traceback" not in up.shown


def test_what_destroys_asks_first(place: Place) -> None:
    """On a terminal: no leaves everything, yes does it. A stranger's text does not reach the terminal as it is."""
    with place.start("run", "app:bus") as worker:
        worker.until("ready:")
        place.out("pub", "events.fragile", '{"evil": "\\u001b[2J"}')
        eventually(lambda: json.loads(place.out("dlq", "ls", "--flat", "--json")) != [])
        with AtTerminal(place, "dlq", "drop", "--all") as asked:
            asked.until("Drop 1 message(s) of fragile for good?")
            asked.type("n\n")
            assert asked.ended() == 1
        assert len(json.loads(place.out("dlq", "ls", "--flat", "--json"))) == 1
        with AtTerminal(place, "tail", "--no-follow") as tail:
            assert tail.ended() == 0
            assert b"[2J" in tail.shown
            assert b"\x1b[2J" not in tail.shown
        with AtTerminal(place, "dlq", "drop", "--all") as asked:
            asked.until("for good?")
            asked.type("y\n")
            assert asked.ended() == 0
        assert json.loads(place.out("dlq", "ls", "--flat", "--json")) == []
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0
