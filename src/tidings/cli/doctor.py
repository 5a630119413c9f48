"""`doctor`: what is wrong, and what mends it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from .. import doctor as doctors
from .. import engines
from ..demo.plan import own_database
from ..embedded import project_directory
from ..errors import TidingsError
from ..permissions import USERS, User, configuration, granted
from ..settings import Settings
from ..subjects import check_filter
from . import options, output


@click.command()
@click.option("--database-url", metavar="URL", help="[TIDINGS_DATABASE_URL]")
@click.option("--port", type=click.IntRange(1, 65535), multiple=True, help="Also see whether this port is free.")
@click.option("--permissions", is_flag=True, help="Only print what users of the namespace have to be allowed.")
@click.option("--user", type=click.Choice(USERS), multiple=True, help="With --permissions: of this user only.")
@click.option("--live", metavar="SUBJECT", multiple=True, help="With --permissions: a channel or request subject.")
@options.as_json
@options.common
def doctor(
    database_url: str | None,
    port: tuple[int, ...],
    permissions: bool,
    user: tuple[User, ...],
    live: tuple[str, ...],
    as_json: bool,
) -> None:
    """Look for what is wrong, and say what mends it. Starts nothing. Exit code 1 when something fails.

    Looks at the broker's program, disk and folder, at the engine, at groups without workers, dead letters and
    unclaimed events, and at the database's tables and outbox; without an address of a database at that of
    `tidings demo`, where it has run.

    With --permissions it asks nobody: it prints users for the configuration of an external nats-server, made from the
    settings' namespace and roots. `publish` may publish, ask and read, `work` is for workers and the command line,
    `admin` may also delete the namespace's streams. With a redis:// URL it prints the one ACL rule of the namespace.
    """
    options.configure_logs("error")
    current = options.settings()
    if permissions:
        _put_permissions(current, user or USERS, live, as_json)
        return
    if user or live:
        raise click.UsageError("--user and --live belong to --permissions")
    database = database_url or current.database_url or _of_the_demo(current)
    findings = asyncio.run(doctors.examine(current.url, current.namespace, database, port))
    if as_json:
        output.put_json(msgspec.to_builtins(findings))
    else:
        rows = [(finding.state, finding.subject, finding.text) for finding in findings]
        output.table(("STATE", "WHAT", "FOUND"), rows)
        for finding in findings:
            if finding.mend:
                output.put(f"\n{finding.state}: {finding.subject}\n  {finding.mend}")
    if any(finding.state == "fail" for finding in findings):
        raise click.exceptions.Exit(1)


def _of_the_demo(settings: Settings) -> str | None:
    """The database beside the broker in which the to-do system has run, if there is one."""
    try:
        place = engines.parse(settings.url, settings.namespace)
    except TidingsError:
        return None  # the findings say it
    if place.kind != "embedded":
        return None
    url = own_database(place.directory or project_directory())
    return url if Path(url.removeprefix("sqlite:///")).is_file() else None


def _put_permissions(settings: Settings, users: Sequence[User], live: Sequence[str], as_json: bool) -> None:
    from ..engines.nats.layout import Layout

    for subject in live:
        check_filter(subject)
    place = engines.parse(settings.url, settings.namespace)
    if place.kind == "redis":
        _put_redis_rule(place, users, live, as_json)
        return
    layout = Layout(place.namespace, settings.roots)
    if as_json:
        output.put_json({user: granted(user, layout, live) for user in users})
    else:
        output.put(configuration(layout, users, live))


def _put_redis_rule(place: engines.Place, users: Sequence[User], live: Sequence[str], as_json: bool) -> None:
    if users != USERS:
        raise click.UsageError("Redis cannot keep a publisher from erasing: there is one kind of user, without --user")
    engines.redis_address(place)  # says what to install
    from ..engines.redis.permissions import rule

    found = rule(place.namespace, live)
    if as_json:
        output.put_json({"rule": found})
    else:
        output.put(found)
