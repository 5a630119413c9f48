"""What every command takes, before or after its name, and the settings that follow from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from ..settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_GIVEN: Final = "tidings.given"


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        ctx.meta.setdefault(_GIVEN, {})[parameter.name] = value


def _option(*names: str, **options: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=_remember, **options)


_COMMON: Final = (
    _option("--url", metavar="URL", help="The engine: embedded:DIR, nats://… or redis://host/namespace. [TIDINGS_URL]"),
    _option("--namespace", metavar="NAME", help="The system on the engine. [TIDINGS_NAMESPACE]"),
    _option("--log-format", type=click.Choice(["text", "json"]), help="[TIDINGS_LOG_FORMAT]"),
    _option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="For run, up and demo info, else warning. [TIDINGS_LOG_LEVEL]",
    ),
    _option("--debug", is_flag=True, help="Show the traceback of an error."),
)


def common(function: F) -> F:
    """Decorate a command with the options of all commands."""
    return functools.reduce(lambda made, option: option(made), reversed(_COMMON), function)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def given(ctx: click.Context | None = None) -> dict[str, Any]:
    """What was given on the command line, by the names of settings."""
    found = (ctx or click.get_current_context()).meta.get(_GIVEN, {})
    return {name: value for name, value in found.items() if name != "debug"}


def debugging(ctx: click.Context) -> bool:
    """Whether tracebacks shall be shown."""
    return bool(ctx.meta.get(_GIVEN, {}).get("debug"))


def settings() -> Settings:
    """The settings in force for this command."""
    from ..settings import load

    return load(**given())


def configure_logs(usual: str = "warning") -> None:
    """Log to stderr: as the settings say in a long-running process, else only what is worth a warning."""
    from .. import logs

    current = settings()
    named = "log_level" in given() or current.log_level != "info"
    logs.configure(current.log_format, current.log_level if named else usual)
