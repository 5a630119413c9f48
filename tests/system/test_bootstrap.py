"""`./demo` on machines that are not ready for it: no uv, a protected Python, odd paths, starts that collide or die.

Most tests start the real scripts in a small project, whose package prints its arguments and whose build needs nothing,
so that an installation takes a fraction of a second. The last one starts them in a copy of this project.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_HOME = "/dev/null/home"  # cannot be made, not even by root
DEADLINE = 60.0

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tidings"
version = "0"
[project.optional-dependencies]
demo = []
"""

# Builds an editable wheel by hand. With GATE set it waits there until somebody has opened and closed that pipe.
BACKEND = """
import os, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    if gate := os.environ.get("GATE"):
        with open(gate) as pipe:
            pipe.read()
    name = "tidings-0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        info = "tidings-0.dist-info"
        wheel.writestr("tidings.pth", os.path.abspath("src"))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tidings\\nVersion: 0\\nProvides-Extra: demo")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""

PROGRAM = """
import json, sys

print(json.dumps(sys.argv[1:]))
sys.exit(7 if "fail" in sys.argv else 0)
"""


@dataclass
class Clone:
    """A clone of a project with our start scripts, and the machine it lies on."""

    path: Path
    search: Path
    """The only folder on PATH."""
    python: str = sys.executable
    variables: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return self.run_python(str(self.path / "demo"), *arguments, **variables)

    def run_python(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        hidden = ("PYTHON", "VIRTUAL_ENV", "XDG_", "UV_CACHE", "CI")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        environment = {**inherited, "PATH": str(self.search), "HOME": NO_HOME, **self.variables, **variables}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.python, *command],
            env=environment,
            cwd=self.search,
            stdout=pipe,
            stderr=pipe,
            text=True,
            preexec_fn=hear_interrupts,
        )

    @property
    def cache(self) -> Path:
        return self.path / ".cache"

    @property
    def environments(self) -> list[Path]:
        return sorted(self.cache.glob("env-demo-*"))


def hear_interrupts() -> None:
    """As in a terminal: a shell that starts the tests in the background has them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Ended:
    status: int
    stdout: str
    stderr: str


def end(process: subprocess.Popen[str], deadline: float = DEADLINE) -> Ended:
    stdout, stderr = process.communicate(timeout=deadline)
    return Ended(process.returncode, stdout, stderr)


def small_clone(folder: Path, search: Path, python: str = sys.executable) -> Clone:
    """At a path with spaces, and a quote for good measure."""
    path = folder / "it's a path with spaces"
    (path / "src" / "tidings").mkdir(parents=True)
    for name in ("demo", "tidings"):
        shutil.copy(ROOT / name, path)
    shutil.copytree(ROOT / "scripts", path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (path / "pyproject.toml").write_text(PYPROJECT)
    (path / "backend.py").write_text(BACKEND)
    (path / "src" / "tidings" / "__init__.py").touch()
    (path / "src" / "tidings" / "__main__.py").write_text(PROGRAM)
    search.mkdir(exist_ok=True)
    return Clone(path, search, python)


def protected_python(folder: Path) -> str:
    """A Python installation of its own, made of links to ours, that is marked as belonging to the system (PEP 668)."""
    binary, library = Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))
    marked = folder / "lib" / library.name
    marked.mkdir(parents=True)
    (folder / "bin").mkdir()
    python = shutil.copy(binary, folder / "bin" / "python3")
    for neighbour in [*library.parent.glob("libpython*"), library.parent / "python3"]:
        if neighbour.exists():
            (folder / "lib" / neighbour.name).symlink_to(neighbour)
    for entry in library.iterdir():
        (marked / entry.name).symlink_to(entry)
    mark = marked / "EXTERNALLY-MANAGED"
    mark.unlink(missing_ok=True)
    mark.write_text("[externally-managed]\nError=this Python belongs to the system\n")
    return str(python)


def broken_program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)


@dataclass(frozen=True)
class FirstStart:
    clone: Clone
    ended: Ended


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstStart:
    """The worst machine: a protected Python, no home, a pip with strict settings, two copies of uv that do not run."""
    folder = tmp_path_factory.mktemp("first")
    clone = small_clone(folder, folder / "bin", python=protected_python(folder / "system"))
    broken_program(folder / "bin" / "uv")
    broken_program(clone.cache / "uv" / "bin" / "uv")
    refused = end(clone.run_python("-m", "pip", "install", "--no-index", "anything"))
    assert "externally-managed-environment" in refused.stderr
    strict = {"PIP_USER": "1", "PIP_REQUIRE_VIRTUALENV": "1"}
    return FirstStart(clone, end(clone.start("--port", "0", "two words", "", "it's", **strict)))


@pytest.fixture
def clone(first: FirstStart, tmp_path: Path) -> Clone:
    """A fresh clone on a machine that has uv: the one that the first start has fetched."""
    return small_clone(tmp_path, first.clone.cache / "uv" / "bin")


def closed_gate(folder: Path) -> Path:
    """A pipe at which a build waits until somebody has held it and let go."""
    gate = folder / "gate"
    os.mkfifo(gate)
    return gate


def hold(gate: Path) -> int:
    """Wait until a build stands at the gate; it goes on when the returned descriptor is closed."""
    give_up = time.monotonic() + DEADLINE
    while True:
        try:
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > give_up:
                raise
        time.sleep(0.01)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    read = ""
    while words not in read:
        line = process.stderr.readline()
        assert line, f"ended without saying {words!r}: {read}"
        read += line
    return read


def test_a_first_start_needs_python_and_pip_only(first: FirstStart) -> None:
    """Where pip may not touch Python, home cannot be written and no uv runs, the first start fetches uv and works."""
    assert first.ended.status == 0, first.ended.stderr
    assert "fetching uv" in first.ended.stderr
    assert (first.clone.cache / "uv" / "bin" / "uv").is_file()


def test_every_argument_arrives_as_it_was_typed(first: FirstStart) -> None:
    """Spaces, quotes and empty words reach the program, and stdout holds nothing but what the program says."""
    assert json.loads(first.ended.stdout) == ["demo", "--port", "0", "two words", "", "it's"]


def test_a_first_start_says_what_it_does(first: FirstStart) -> None:
    """The first line names the folder it writes to, and each step is named and timed."""
    first_line, *steps = first.ended.stderr.splitlines()
    assert str(first.clone.cache) in first_line
    assert sum(line.endswith(" ...") for line in steps) == sum("done in" in line for line in steps) == 3


def test_a_second_start_does_nothing_but_become_the_program(first: FirstStart, tmp_path: Path) -> None:
    """Once set up, a start says nothing, starts no process, loads no installer: it is one exec."""
    record = tmp_path / "events"
    watched = """
import runpy, sys
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"):
        with open(record, "a") as file:
            print(event, *sorted({"subprocess", "install"} & set(sys.modules)), file=file)
record, *sys.argv = sys.argv[1:]
sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    demo = str(first.clone.path / "demo")
    ended = end(first.clone.run_python("-c", watched, str(record), demo, "again"))
    assert (ended.status, ended.stderr, json.loads(ended.stdout)) == (0, "", ["demo", "again"])
    assert record.read_text() == "os.exec\n"


def test_the_command_line_shares_the_environment_of_the_demo(first: FirstStart) -> None:
    """After a `./demo` nothing has to be installed for `./tidings`, and arguments arrive as they were typed."""
    ended = end(first.clone.run_python(str(first.clone.path / "tidings"), "dlq", "ls", "two words"))
    assert (ended.status, ended.stderr, json.loads(ended.stdout)) == (0, "", ["dlq", "ls", "two words"])


def test_the_exit_status_is_the_program_s(first: FirstStart) -> None:
    """Whoever called gets the status of the program, since the start became it."""
    assert end(first.clone.start("fail")).status == 7


def test_two_first_starts_at_once_install_once(clone: Clone, tmp_path: Path) -> None:
    """The second of two starts waits for the first and uses what it made."""
    gate = closed_gate(tmp_path)
    one = clone.start("one", GATE=str(gate))
    held = hold(gate)
    two = clone.start("two")
    read_until(two, "another start is installing")
    os.close(held)
    first_ended, second_ended = end(one), end(two)
    assert (first_ended.status, json.loads(first_ended.stdout)) == (0, ["demo", "one"])
    assert (second_ended.status, json.loads(second_ended.stdout)) == (0, ["demo", "two"])
    assert "making an environment" not in second_ended.stderr


def test_a_killed_first_start_heals(clone: Clone, tmp_path: Path) -> None:
    """After kill -9 the next start waits for the orphaned installer to be gone, then makes the environment anew."""
    gate = closed_gate(tmp_path)
    killed = clone.start(GATE=str(gate))
    held = hold(gate)
    killed.kill()
    killed.wait(DEADLINE)
    after = clone.start("after")
    read_until(after, "another start is installing")
    os.close(held)
    end(killed)
    ended = end(after)
    assert (ended.status, json.loads(ended.stdout)) == (0, ["demo", "after"])
    assert "making an environment" in ended.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_first_start_ends_its_installer(clone: Clone, tmp_path: Path, number: int, status: int) -> None:
    """SIGTERM and Ctrl-C end the start at once without a traceback, and what is half made is not used."""
    gate = closed_gate(tmp_path)
    stopped = clone.start(GATE=str(gate))
    held = hold(gate)
    stopped.send_signal(number)
    assert stopped.wait(DEADLINE) == status
    os.close(held)
    assert "Traceback" not in end(stopped).stderr
    assert [path for path in clone.environments if (path / "ready").exists()] == []


def test_without_uv_pip_makes_it(tmp_path: Path) -> None:
    """Where uv is neither there nor to be had, venv and pip make the same environment."""
    clone = small_clone(tmp_path, tmp_path / "empty")
    clone.python = os.path.realpath(sys.executable)
    ended = end(clone.start("by pip", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)))
    assert ended.status == 0, ended.stderr
    assert json.loads(ended.stdout) == ["demo", "by pip"]
    assert "installing the packages with pip" in ended.stderr


def test_a_failed_installation_shows_why(clone: Clone) -> None:
    """When nothing can install it, the installer's own last words, a likely cause and a failing status remain."""
    (clone.path / "backend.py").write_text("raise SystemExit('the build is broken on purpose')")
    ended = end(clone.start())
    assert ended.status == 1
    assert "the build is broken on purpose" in ended.stderr
    assert "Likely causes" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_changed_project_gets_another_environment(clone: Clone) -> None:
    """What pyproject.toml asks for is what is installed: a change of it makes a new environment at the next start."""
    assert end(clone.start()).status == 0
    with (clone.path / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert "making an environment" in end(clone.start()).stderr
    assert len(clone.environments) == 2


def test_a_removed_interpreter_heals(clone: Clone) -> None:
    """An environment whose Python has been upgraded away is made anew."""
    assert end(clone.start()).status == 0
    (environment,) = clone.environments
    (environment / "bin" / "python").unlink()
    ended = end(clone.start("healed"))
    assert (ended.status, json.loads(ended.stdout)) == (0, ["demo", "healed"])


def test_a_cache_in_disorder_is_named(clone: Clone) -> None:
    """What cannot be removed or written inside `.cache` ends in a sentence that names it, and no traceback."""
    (clone.cache / "install.log").mkdir(parents=True)
    ended = end(clone.start())
    assert ended.status == 1
    assert str(clone.cache / "install.log") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_cache_that_is_no_folder_is_named(clone: Clone) -> None:
    """Where `.cache` cannot be written there is a sentence with its name, and no traceback."""
    clone.cache.write_text("in the way")
    ended = end(clone.start())
    assert ended.status == 1
    assert f"cannot write to {clone.cache}" in ended.stderr
    assert "Traceback" not in ended.stderr


# Our Python, but one that says it is 3.9 when asked.
PRETEND_TO_BE_OLD = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.version_info = (3, 9, 18, "final", 0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_old_python_hands_over_to_a_newer_one(first: FirstStart, tmp_path: Path) -> None:
    """Started with an old Python, it goes on with one from PATH, past a version manager's name that does not start."""
    search = tmp_path / "bin"
    search.mkdir()
    broken_program(search / "python3.13")
    (search / "python3.11").symlink_to(first.clone.python)
    clone = Clone(first.clone.path, search)
    ended = end(clone.run_python("-c", PRETEND_TO_BE_OLD, str(clone.path / "demo"), "handed over"))
    assert (ended.status, json.loads(ended.stdout)) == (0, ["demo", "handed over"])


def test_an_old_python_alone_gets_a_sentence(first: FirstStart, tmp_path: Path) -> None:
    """With no newer Python anywhere, the sentence names the version wanted, the one found, and what to install."""
    clone = Clone(first.clone.path, tmp_path)
    ended = end(clone.run_python("-c", PRETEND_TO_BE_OLD, str(clone.path / "demo")))
    assert ended.status == 1
    assert ended.stderr.startswith("demo: Tidings needs Python 3.11 or newer. This is Python 3.9 ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.timeout(300)  # downloads what the demo needs, unless an earlier run has
def test_this_project_starts_from_a_copy(first: FirstStart, tmp_path: Path) -> None:
    """The real project, at a path with spaces and without a home: `./demo --help` installs it and answers.

    `./tidings` then looks for the broker where `./demo` keeps it."""
    path = tmp_path / "a copy"
    path.mkdir()
    for name in ("demo", "tidings", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, path)
    for name in ("scripts", "src", "examples"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    clone = Clone(path, first.clone.cache / "uv" / "bin", variables={"UV_CACHE_DIR": str(ROOT / ".cache" / "uv-cache")})
    ended = end(clone.start("--help"), deadline=240)
    assert ended.status == 0, ended.stderr
    assert "usage" in ended.stdout.lower()
    ended = end(subprocess.Popen([sys.executable, "tidings", "url"], cwd=path, stderr=subprocess.PIPE, text=True))
    assert ended.status == 4
    assert ended.stderr.startswith(f"error: no broker runs in {path / '.tidings'}. ")
