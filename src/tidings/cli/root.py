"""The commands by name. Each lives in a module that is imported when it is used: `tidings health` loads little."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from typing import Any, Final

import click

from .. import errors
from ..logs import printable
from . import options, output

FAILED: Final = 1
USAGE: Final = 2
PARTLY: Final = 3
UNREACHABLE: Final = 4
NOT_FOUND: Final = 5
INTERRUPTED: Final = 130

COMMANDS: Final = {
    "up": ("running", "Run broker, workers and web application in this terminal."),
    "run": ("running", "Run the handlers of a bus: a worker."),
    "demo": ("demo", "Run the to-do system, the reference application."),
    "pub": ("pub", "Publish an event, or say something on a live channel."),
    "tail": ("tail", "Follow stored events and live channels."),
    "request": ("request", "Ask a question and print the answer."),
    "ls": ("look", "List the subjects with stored events, and who wants them."),
    "stats": ("look", "Count messages, and what each group has before it."),
    "explain": ("look", "Say what each group has to do with one message, and why."),
    "groups": ("groups", "List, pause, resume and remove groups of handlers."),
    "schedules": ("schedules", "List and remove schedules, cancel delayed messages."),
    "dlq": ("dlq", "Look at dead letters, put them back, drop them."),
    "replay": ("replay", "Give one group old events again."),
    "db": ("db", "Look after the framework's tables in your database."),
    "doctor": ("doctor", "Look for what is wrong, and say what mends it."),
    "health": ("health", "Exit with 0 if the engine answers, with 4 if not."),
    "url": ("url", "Print the URL under which the broker answers."),
    "web": ("web", ""),
}
"""Name, module, and the line of `tidings --help`. What has no such line is for our own use."""


class NotFound(errors.TidingsError):
    """What was asked for is not there."""


class Partly(errors.TidingsError):
    """Some of it was done, not all."""


class Failure(click.ClickException):
    """An error as a person sees it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(printable(text))
        self.exit_code = code  # type: ignore[misc]  # Click itself sets it on instances, its stubs know it on classes

    def show(self, file: Any = None) -> None:
        click.echo(f"{output.coloured('error:', fg='red', bold=True)} {self.message}", err=True)


class Commands(click.Group):
    """Imports a command when it is called, and turns errors into sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (_, line) in COMMANDS.items() if line]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items() if line])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except (KeyboardInterrupt, EOFError, click.Abort):
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            alone = _alone(error)
            if isinstance(alone, click.ClickException | click.exceptions.Exit | BrokenPipeError):
                raise alone from None
            if options.debugging(ctx):
                traceback.print_exc()
            raise Failure(sentence(alone), code_of(alone)) from None


def _alone(error: Exception) -> Exception:
    """The one error in a group of one; tasks that run side by side raise groups."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def sentence(error: BaseException) -> str:
    """What went wrong, in one sentence; errors of our own say it themselves."""
    if isinstance(error, errors.TidingsError) or _is_of_database(error):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def code_of(error: BaseException) -> int:
    """The exit code of an error."""
    if isinstance(error, errors.ConfigError | errors.InvalidMessage | errors.Unsuitable):
        return USAGE
    if isinstance(error, Partly):
        return PARTLY
    if isinstance(error, errors.DatabaseBehind):
        return FAILED
    if isinstance(error, NotFound | errors.NoNamespace | errors.NoResponder | errors.RequestTimeout):
        return NOT_FOUND
    if isinstance(error, errors.EngineUnavailable | errors.DatabaseError) or _is_of_database(error):
        return UNREACHABLE
    return FAILED


def _is_of_database(error: BaseException) -> bool:
    """Whether it says that the database cannot be reached, asked without importing SQLAlchemy."""
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    return sqlalchemy is not None and isinstance(error, sqlalchemy.OperationalError | sqlalchemy.InterfaceError)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tidings", message="tidings %(version)s")
@options.common
def commands() -> None:
    """Asynchronous messaging for Python applications, with a real broker inside.

    \b
    tidings demo                                        a whole system to look at
    tidings pub events.todo.newitem '{"item": "x"}'     store an event
    tidings tail 'events.>'                             see events go by
    tidings up app.handlers:bus --web app.web:app       run an application

    Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done, 4 engine or
    database cannot be reached, 5 not found or no answer in time, 130 interrupted.
    """
