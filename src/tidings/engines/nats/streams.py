"""Make sure that a namespace's streams exist and are what they have to be."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal, TypeAlias

from ...errors import ConfigError, EngineUnavailable, NoNamespace
from ...subjects import covers, normalise
from .api import NO_STREAM, OVERLAP, ApiError, JetStream
from .layout import API_LEVEL, Layout
from .link import Denied
from .lock import Lock, locked

Mode: TypeAlias = Literal["look", "join", "extend"]
"""What opening a namespace may change. `look`: nothing, and none is an error. `join`: it is made where there is none,
else taken as it is. `extend`: its roots are added to as well."""

_SUFFIX: Final = "-events"
_COPIES = 3
_NO_CLUSTER = 10074  # one server keeps one copy
_TOO_FEW = 10005  # the cluster has not that many servers with JetStream and space at the moment
_GATHERING: Final = 3.0
"""Seconds for which that is waited out."""


async def prepare(js: JetStream, layout: Layout, replicas: int | None = None, mode: Mode = "extend") -> tuple[str, ...]:
    """Check the server, create what is missing, add new roots, as far as `mode` allows; returns the roots.

    A user who may only read is enough when all is there. New streams are kept in `replicas` copies; None is three in
    a cluster, one on a single server.
    """
    await _check_server(js)
    control = await _existing(js, layout.control)
    events = await _existing(js, layout.events)
    if mode == "look" and (control is None or events is None):
        raise NoNamespace(
            f"there is no namespace {layout.namespace!r} on {js.link.server}{await _others(js)}: "
            "start a worker or publisher of it once, or correct the name"
        )
    if control is None:
        control = await _create(js, layout, layout.control_config(replicas or _COPIES), replicas is None)
    if events is None:
        events = await _create(js, layout, layout.events_config(replicas or _COPIES), replicas is None)
    js.replicated = control.get("num_replicas", 1) > 1 or events.get("num_replicas", 1) > 1
    _check(layout.control, control, layout.control_config(1))
    _check(layout.events, events, layout.events_config(1))
    if mode != "extend":
        return tuple(events.get("subjects") or ())
    if _missing(layout, events):
        await _add_roots(js, layout)
    return layout.roots


async def _others(js: JetStream) -> str:
    """The namespaces there are, in words; empty when this user may not know."""
    try:
        names = (await js.call("STREAM.NAMES", timeout=1.0)).get("streams") or []
    except (ApiError, EngineUnavailable):
        return ""
    there = sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return f", there are: {', '.join(there)}" if there else ", nor any other"


async def _check_server(js: JetStream) -> None:
    try:
        info = await js.call("INFO", timeout=max(min(3.0, js.timeout), js.timeout - 7.0))
    except Denied:
        return
    except ApiError as error:
        raise EngineUnavailable(f"{js.link.server}: JetStream cannot be used by this account: {error}") from error
    except EngineUnavailable as error:
        if not js.link.connected:
            raise
        raise EngineUnavailable(
            f"{js.link.server} answers, but JetStream does not: start nats-server with `-js`, or enable it for the "
            f"account; a cluster that has just lost a server needs up to 10 seconds ({error})"
        ) from error
    level = (info.get("api") or {}).get("level", 0)
    if level < API_LEVEL:
        raise EngineUnavailable(
            f"{js.link.server} is too old (JetStream API level {level}): nats-server 2.14 or newer is needed"
        )


async def _existing(js: JetStream, name: str) -> dict[str, Any] | None:
    try:
        config: dict[str, Any] = (await js.stream(name))["config"]
    except ApiError as error:
        if error.code == NO_STREAM:
            return None
        raise
    return config


async def _create(js: JetStream, layout: Layout, config: dict[str, Any], one_will_do: bool) -> dict[str, Any]:
    name = config["name"]
    try:
        return await _placed(js, config)
    except Denied as error:
        raise EngineUnavailable(
            f"the namespace {layout.namespace!r} does not exist on {js.link.server} yet, and this user may not create "
            "it: start a worker of it once"
        ) from error
    except ApiError as error:
        if error.code == _NO_CLUSTER and one_will_do:
            return await _create(js, layout, config | {"num_replicas": 1}, False)
        if error.code in (_NO_CLUSTER, _TOO_FEW):
            raise EngineUnavailable(
                f"{js.link.server} cannot keep {config['num_replicas']} copies of the stream {name} ({error}): are all "
                "servers of the cluster up? To be content with fewer copies write ?replicas=1 behind the URL"
            ) from error
        if error.code == OVERLAP:
            raise ConfigError(
                f"the subjects {', '.join(config['subjects'])} belong to another namespace or stream of this NATS "
                f"account: give the namespace {layout.namespace!r} others with roots=, or an account of its own"
            ) from error
        existing = await _existing(js, name)  # somebody else was faster
        if existing is None:
            raise EngineUnavailable(f"the stream {name} could not be created: {error}") from error
        return existing


async def _placed(js: JetStream, config: dict[str, Any]) -> dict[str, Any]:
    """Create the stream; a cluster that is just starting learns of its servers one after the other."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _GATHERING
    while True:
        try:
            created: dict[str, Any] = (await js.call(f"STREAM.CREATE.{config['name']}", config))["config"]
            return created
        except ApiError as error:
            if error.code != _TOO_FEW or loop.time() >= until:
                raise
        await asyncio.sleep(0.1)


_LIMITS = ("max_msgs", "max_bytes", "max_msgs_per_subject", "max_age")


def _check(name: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a stream that would lose messages or lacks what is needed."""
    wrong = [
        f"{key} is {found.get(key)!r} and has to be {wanted.get(key, False)!r}"
        for key in ("retention", "discard", "storage", "allow_atomic", "allow_direct")
        if found.get(key) != wanted.get(key, False)
    ]
    wrong += [
        f"{key} is {bool(found.get(key))} and has to be {wanted.get(key, False)}"
        for key in ("allow_msg_schedules", "allow_msg_ttl", "allow_rollup_hdrs")
        if bool(found.get(key)) != wanted.get(key, False)
    ]
    for key in _LIMITS:
        # Events refuses what is above `max_bytes` or `max_msgs`; every other limit removes messages silently.
        harmless = wanted["discard"] == "new" and key in ("max_msgs", "max_bytes")
        if found.get(key, -1) > 0 and not harmless:
            wrong.append(f"{key} is {found[key]}: it would remove messages that nobody has handled")
    if wanted.get("sources") and not found.get("sources"):
        wrong.append(f"it does not source {wanted['sources'][0]['name']}, so that delayed messages would not arrive")
    if wrong:
        raise EngineUnavailable(
            f"the stream {name} cannot be used: {'; '.join(wrong)}. Correct it with `nats stream edit`"
        )


def _missing(layout: Layout, config: dict[str, Any]) -> list[str]:
    there = config.get("subjects") or []
    return [root for root in layout.roots if not any(covers(subject, root) for subject in there)]


async def _add_roots(js: JetStream, layout: Layout) -> None:
    """Merge our roots into the stream. There is no compare-and-set on streams: hence the lock, and the look after."""

    async def add(lock: Lock) -> None:
        config = (await js.stream(layout.events))["config"]
        config["subjects"] = normalise([*config["subjects"], *layout.roots])
        try:
            await js.call(f"STREAM.UPDATE.{layout.events}", config, timeout=lock.left())
        except ApiError as error:
            if error.code != OVERLAP:
                raise
            raise ConfigError(
                f"roots={', '.join(layout.roots)}: another namespace or stream of this account has these subjects"
            ) from error

    while True:
        await locked(js, layout, add)
        if not _missing(layout, (await js.stream(layout.events))["config"]):
            return
