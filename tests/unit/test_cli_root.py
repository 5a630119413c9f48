"""The command line as a whole: help, errors, exit codes, settings, and what it loads."""

from __future__ import annotations

import errno
import gc
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tidings import cli, errors
from tidings.cli import attend, options
from tidings.cli.find import load_object
from tidings.cli.root import COMMANDS, NotFound, Partly, code_of, commands


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)


def tidings(*words: str) -> Result:
    return CliRunner().invoke(commands, words)


def test_help_names_every_command() -> None:
    """`tidings --help` lists them without importing them."""
    shown = tidings("--help").stdout
    assert [name for name, (_, line) in COMMANDS.items() if line and f"\n  {name} " not in shown] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """Each one loads, and its help says what it does and how it is called."""
    result = tidings(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: commands {name}")
    assert len(result.stdout.splitlines()[2].strip()) > 20


def test_every_group_of_commands_explains_its_members() -> None:
    """Commands of commands have help too."""
    context = click.Context(commands)
    for name in COMMANDS:
        command = commands.get_command(context, name)
        for member in getattr(command, "commands", {}).values():
            assert member.help, f"{name} {member.name}"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EngineError("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.InvalidMessage("x"), 2),
        (Partly("x"), 3),
        (errors.BrokerError("x"), 4),
        (errors.EngineUnavailable("x"), 4),
        (errors.DatabaseError("x"), 4),
        (errors.DatabaseBehind("x"), 1),
        (NotFound("x"), 5),
        (errors.NoNamespace("x"), 5),
        (errors.NoResponder("x"), 5),
        (errors.RequestTimeout("x", 1), 5),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    """Scripts can tell what happened by the exit code alone."""
    assert code_of(error) == code


def test_a_group_of_one_error_is_shown_as_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that run side by side raise groups; a person sees what went wrong, and a pipe that was closed ends it."""
    told, closed = errors.EngineUnavailable("nobody answers at host"), BrokenPipeError(errno.EPIPE, "closed")

    def fail(error: Exception) -> Result:
        def load() -> None:
            raise ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("more", [error])])

        monkeypatch.setattr("tidings.cli.options.settings", load)
        return tidings("url")

    result = fail(told)
    assert (result.exit_code, result.stderr) == (4, "error: nobody answers at host\n")
    result = fail(closed)
    assert (result.exit_code, result.stderr) == (1, "")


def test_an_error_in_the_settings_is_all_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 and the setting's name; no work was begun that nobody awaits (warnings are errors here)."""
    monkeypatch.setenv("TIDINGS_LOG_LEVEL", "loud")
    result = tidings("stats")
    gc.collect()
    assert result.exit_code == 2
    assert "TIDINGS_LOG_LEVEL" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_error_is_a_sentence(tmp_path: Path) -> None:
    """It goes to stderr, without a traceback; with --debug the traceback comes too."""
    words = ("--url", "kafka://host", "stats")
    plain, debug = tidings(*words), tidings("--debug", *words)
    assert plain.exit_code == debug.exit_code == 2
    assert plain.stdout == ""
    assert plain.stderr.startswith("error: the URL 'kafka://host' names no engine")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_a_password_is_not_shown_in_an_error() -> None:
    """Errors quote URLs with the password masked."""
    result = tidings("--url", "nats://u:s3cret@:port", "stats")
    assert result.exit_code == 2
    assert "s3cret" not in result.stderr


def test_options_stand_before_or_after_the_command() -> None:
    """The one that is nearer to the command wins."""
    seen = {}

    @click.command()
    @options.common
    def probe() -> None:
        seen.update(options.given())

    group = click.Group(commands={"probe": probe})
    outer = options.common(lambda: None)
    group.params = click.command()(outer).params
    CliRunner().invoke(group, ["--url", "a:", "--namespace", "n", "probe", "--url", "b:"], catch_exceptions=False)
    assert seen == {"url": "b:", "namespace": "n"}


def test_url_of_a_broker_that_does_not_run(tmp_path: Path) -> None:
    """Exit code 4, a sentence that says how to start one, and nothing is made."""
    for command in ("url", "health"):
        result = tidings("--url", f"embedded:{tmp_path / 'none'}", command)
        assert result.exit_code == 4
        assert "no broker runs in" in result.stderr
    assert not (tmp_path / "none").exists()


def test_url_of_a_remote_engine() -> None:
    """It is the one that was set, masked on request."""
    assert tidings("--url", "nats://u:p@h:1/ns", "url").stdout == "nats://u:p@h:1/ns\n"
    assert tidings("--url", "nats://u:p@h:1/ns", "url", "--masked").stdout == "nats://u:***@h:1/ns\n"


def test_memory_cannot_be_looked_into() -> None:
    """There is no store outside of a program's own process, and that is said."""
    result = tidings("--url", "memory:", "stats")
    assert result.exit_code == 2
    assert "lives inside one process" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pubb", "events.x"), "Did you mean 'pub'?"),
        (("run",), "which bus?"),
        (("run", "nowhere.at_all:bus"), "there is no module 'nowhere.at_all' here"),
        (("run", "json:bus"), "the module 'json' has no 'bus'"),
        (("run", "json:dumps"), "is no tidings.Bus but a function"),
        (("up",), "say what to run"),
        (("up", "a:b", "--scale", "save"), "write GROUP=N"),
        (("demo", "--with", "save,mail"), "has no handlers 'mail'"),
        (("demo", "--scale", "mutate=2"), "--with save,audit,mutate"),
    ],
)
def test_wrong_usage_is_told_and_is_exit_code_2(words: tuple[str, ...], said: str) -> None:
    """Each of these cannot work, and the sentence says what to write."""
    result = tidings(*words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_module_that_fails_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the user's own code comes with file and line instead of our traceback."""
    (tmp_path / "broken_app.py").write_text("x = 1\nraise ValueError('not today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(errors.ConfigError, match=r"ValueError: not today \(.*broken_app.py, line 2\)"):
        load_object("broken_app:bus", usual="bus")


def test_a_missing_dependency_is_not_a_missing_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the user's module imports something that is not installed, that is what is named."""
    (tmp_path / "needy_app.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(errors.ConfigError, match="no_such_package"):
        load_object("needy_app:bus", usual="bus")


def test_a_taken_port_is_told_with_what_to_do() -> None:
    """No stack trace of a bind error: the port, and the option that names another."""
    with attend.listen("127.0.0.1", 0) as taken, pytest.raises(errors.ConfigError, match=r"is taken .* --port"):
        attend.listen("127.0.0.1", taken.getsockname()[1])


def test_help_loads_little() -> None:
    """Neither Rich nor an engine's driver nor a database is imported to print the help or to ask for health."""
    code = "import sys; from tidings.cli.root import commands; commands(['health', '--help'], standalone_mode=False)"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*sys.modules)"], check=True, capture_output=True, text=True
    )
    loaded = set(run.stdout.split())
    assert loaded & {"rich", "nats", "sqlalchemy", "uvicorn", "starlette", "tidings.engines.nats"} == set()


def test_main_is_what_the_script_calls(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes its words from the process and ends with an exit code."""
    monkeypatch.setattr(sys, "argv", ["tidings", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("tidings ")


def test_a_bus_without_handlers_is_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forgotten import of the handlers: exit code 2 before anything is started, and what to do."""
    (tmp_path / "handlerless.py").write_text("import tidings\nbus = tidings.Bus('app', url='memory:')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = tidings("run", "handlerless:bus")
    assert result.exit_code == 2
    assert "handlerless:bus has no handlers: import the modules with @bus.on(…)" in result.stderr
