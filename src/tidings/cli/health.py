"""`health`: one question to the engine, for probes. Loads neither the application nor an engine's driver."""

from __future__ import annotations

import json
from typing import Final

import click

from .. import engines
from ..engines import Place
from ..errors import ConfigError, EngineUnavailable
from . import options

_PATIENCE: Final = 5.0


@click.command()
@options.as_json
@options.common
def health(as_json: bool) -> None:
    """Exit with 0 if the engine answers, with 4 if not. Starts nothing and changes nothing."""
    current = options.settings()
    place = engines.parse(current.url, current.namespace)
    try:
        answer = f"{place.shown}: {_ask(place)}"
    except EngineUnavailable as error:
        if as_json:
            click.echo(json.dumps({"ok": False, "error": str(error)}))
        raise
    click.echo(json.dumps({"ok": True, "engine": answer}) if as_json else f"ok: {answer}")


def _ask(place: Place) -> str:
    if place.kind == "memory":
        raise ConfigError("memory: lives inside one process, nobody else can ask it")
    if place.kind == "embedded":
        from .. import embedded

        directory = place.directory or embedded.project_directory()
        if embedded.locate(directory) is None:
            raise EngineUnavailable(". ".join(embedded.silence(directory)))
        return "the embedded broker answers"
    if place.kind == "redis":
        return _ask_redis(place)
    if any(server.startswith("tls:") for server in place.servers):
        return _ask_with_driver(place)
    return _probe(place)


def _ask_redis(place: Place) -> str:
    import asyncio

    from ..engines import redis_address

    address = redis_address(place)
    from ..engines.redis import probe

    return f"{asyncio.run(probe(address))} answers"


def _probe(place: Place) -> str:
    from urllib.parse import urlsplit

    from ..embedded.config import Address
    from ..embedded.probe import ProbeError, probe

    problems = []
    for server in place.servers:
        parts = urlsplit(server)
        address = Address(parts.hostname or "", parts.port or 4222, place.user or "", place.password or "")
        try:
            return f"nats-server {probe(address, jetstream=True).version} answers"
        except ProbeError as error:
            problems.append(f"{server}: {str(error).removeprefix(f'{address}: ')}")
    raise EngineUnavailable(f"nobody answers: {'; '.join(problems)}. Is the server running, and is the URL right?")


def _ask_with_driver(place: Place) -> str:
    """TLS is the driver's to speak."""
    import asyncio

    import nats

    async def ask() -> str:
        try:
            # The driver tries servers for ever in some settings: the time limit is ours.
            async with asyncio.timeout(_PATIENCE):
                client = await nats.connect(
                    list(place.servers),
                    user=place.user,
                    password=place.password,
                    allow_reconnect=False,
                    connect_timeout=2,
                    max_reconnect_attempts=1,
                    error_cb=_ignore,
                )
        except Exception as error:
            raise EngineUnavailable(f"nobody answers at {place.shown}: {type(error).__name__}: {error}") from error
        await client.close()
        return "nats-server answers"

    return asyncio.run(ask())


async def _ignore(_: Exception) -> None:
    """The error is raised as well."""
