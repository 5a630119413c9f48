"""`url`: where the broker answers, for other tools."""

from __future__ import annotations

import click

from .. import engines
from ..errors import ConfigError, EngineUnavailable
from . import options


@click.command()
@click.option("--masked", is_flag=True, help="With *** for the password.")
@options.as_json
@options.common
def url(masked: bool, as_json: bool) -> None:
    """Print the URL of the engine; of the embedded broker that runs, with the rights to publish and read.

    Contains the password, unless --masked. Exit code 4 if no broker runs; it is not started.

    \b
    nats --server "$(tidings url)" pub events.todo.newitem '{"item": "x"}'
    """
    current = options.settings()
    place = engines.parse(current.url, current.namespace)
    if place.kind == "memory":
        raise ConfigError("memory: has no address: it lives inside one process")
    found = current.url
    if place.kind == "embedded":
        from .. import embedded

        directory = place.directory or embedded.project_directory()
        address = embedded.locate(directory)
        if address is None:
            raise EngineUnavailable(". ".join(embedded.silence(directory)))
        found = address.url if place.namespace == "tidings" else f"{address.url}/{place.namespace}"
    shown = engines.mask(found) if masked else found
    if as_json:
        from .output import put_json

        put_json({"url": shown, "namespace": place.namespace})
    else:
        click.echo(shown)
