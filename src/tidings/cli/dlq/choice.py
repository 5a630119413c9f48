"""The options that say which dead letters are meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click
import msgspec

from ...clock import SystemClock
from ...deadletters import Selection
from ...engine import Reason
from ...errors import ConfigError
from ...subjects import check_filter
from .. import options
from ..tail import moment

F = TypeVar("F", bound=Callable[..., Any])


class Choice(msgspec.Struct, frozen=True):
    """Which ones, as it was typed."""

    group: str | None
    reason: str | None
    error: str | None
    subject: str | None
    since: float | None
    before: float | None
    keys: tuple[str, ...] = ()
    everything: bool = False

    @property
    def selection(self) -> Selection:
        """What is meant; all there is, where nothing was said."""
        if self.subject is not None:
            check_filter(self.subject)
        names = ("keys", "group", "reason", "error", "subject", "since", "before")
        return Selection(**{name: getattr(self, name) for name in names})

    @property
    def deliberate(self) -> Selection:
        """The same, for what changes something; raises a usage error where nothing says which are meant."""
        if self.keys and self.everything:
            raise click.UsageError("give keys or --all, not both")
        if self.selection == Selection() and not self.everything:
            raise click.UsageError(
                "say which: keys as `tidings dlq ls --flat` shows them, --error ID as `tidings dlq ls` does, --group, "
                "--reason, --subject, --since, --before or --all"
            )
        return self.selection

    @property
    def words(self) -> str:
        """For people."""
        named = [
            f"--{name} {value}" for name in ("group", "reason", "error", "subject") if (value := getattr(self, name))
        ]
        named += [
            f"--{name} {getattr(self, name):.0f}" for name in ("since", "before") if getattr(self, name) is not None
        ]
        return " ".join([*self.keys[:20], *named]) or "--all"


class Order(msgspec.Struct, frozen=True):
    """What is to be done with them."""

    choice: Choice
    dry_run: bool
    yes: bool
    as_json: bool

    @classmethod
    def of(cls, given: dict[str, Any]) -> Order:
        """From the options of `acting` and `choosing`."""
        own = {name: given.pop(name) for name in ("dry_run", "yes", "as_json")}
        return cls(Choice(**given), **own)


def _when(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return moment(value, SystemClock().time())
    except ConfigError:
        raise click.BadParameter(f"{value!r}: write a time ago (5m) or a time (2030-01-31T12:00)") from None


def filtering(function: F) -> F:
    """The options of a `Choice` that look at what a letter is."""
    for option in (
        click.option("--before", metavar="WHEN", callback=_when, help="Those that died before."),
        click.option("--since", metavar="WHEN", callback=_when, help="Those that died since: 5m ago, or a time."),
        click.option("--subject", metavar="FILTER", help="Those on these subjects."),
        click.option("--error", metavar="ID", help="Those that died of this error, by the ID of `tidings dlq ls`."),
        click.option("--reason", type=click.Choice(get_args(Reason)), help="Those that died for this reason."),
        click.option("--group", "-g", help="Those of one group."),
    ):
        function = option(function)
    return function


def choosing(function: F) -> F:
    """All options of a `Choice`."""
    function = click.option("--all", "everything", is_flag=True, help="All of them.")(filtering(function))
    return click.argument("keys", metavar="[KEY]...", nargs=-1)(function)


def acting(function: F) -> F:
    """The options of an `Order`."""
    for option in (
        options.common,
        options.as_json,
        click.option("--yes", "-y", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Only say what would happen."),
    ):
        function = option(function)
    return choosing(function)
