"""Who may do what on a NATS server, said once: for the broker inside, and for an account on an external server.

Three users. *publish*: events, requests, channels, reading; nothing that is stored can be erased by it. *work*: also
what workers do, consumers and the control stream. *admin*: also what ends streams or rebuilds them.

On our own broker a user may do everything but what is kept for others, because the whole server is ours. On an external
server, whose account may hold more than one namespace, a user may do only what is listed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from .engines.nats.layout import Layout

User = Literal["publish", "work", "admin"]
USERS: Final[tuple[User, ...]] = get_args(User)

PRIVATE_INBOX: Final = "_INBOX_WORK"
"""What reply subjects begin with that `publish` cannot overhear, on our own broker."""

# What follows `$JS.API.` in the requests of each user; `*` stands for a stream.
_API: Final[dict[User, tuple[str, ...]]] = {
    "publish": (
        "INFO",
        "STREAM.INFO.*",
        "STREAM.MSG.GET.*",
        "CONSUMER.INFO.*.>",
        "CONSUMER.LIST.*",
        "CONSUMER.NAMES.*",
    ),
    # They change what is stored or who gets it. Direct gets and consumers are among them although they only read: the
    # server sends what they yield to *any* reply subject without asking for permissions, so that an event with the
    # body `{}`, got directly with `$JS.API.STREAM.PURGE.<stream>` as reply subject, erases the log (tried).
    # STREAM.MSG.GET wraps the message in JSON that no other request accepts (the server's strict mode).
    "work": (
        "STREAM.CREATE.*",
        "STREAM.UPDATE.*",
        "STREAM.PURGE.*",
        "STREAM.MSG.DELETE.*",
        "DIRECT.GET.*",
        "DIRECT.GET.*.>",
        "CONSUMER.CREATE.*.>",
        "CONSUMER.DELETE.*.>",
        "CONSUMER.PAUSE.*.>",
        "CONSUMER.MSG.NEXT.*.>",
    ),
    "admin": (
        "STREAM.DELETE.*",
        "STREAM.RESTORE.*",
        "STREAM.SNAPSHOT.*",
        "STREAM.PEER.REMOVE.*",
        "STREAM.LEADER.STEPDOWN.*",
        "CONSUMER.LEADER.STEPDOWN.*.>",
    ),
}

# Of no namespace, or not used by us: nobody needs them, and on our own broker only an administrator has them.
_OTHER_API: Final = ("STREAM.CANCEL_MOVE.>", "CONSUMER.PEER.>", "META.>", "SERVER.>", "ACCOUNT.>")
_OTHER_WORK: Final = ("CONSUMER.DURABLE.>", "CONSUMER.UNPIN.>", "CONSUMER.RESET.>")

_SYSTEM: Final = ("$SYS.>", "$JSC.>", "$NRG.>")


def denied(user: User) -> dict[str, Any]:
    """What a user may not do on our own broker, in the server's words; empty for who may do all."""
    if user == "admin":
        return {}
    admin = _requests(_families("admin") + _OTHER_API)
    if user == "work":
        return {"publish": {"deny": [*_SYSTEM, *admin]}, "subscribe": {"deny": list(_SYSTEM)}}
    work = _requests(_families("work") + _OTHER_WORK)
    return {
        "publish": {"deny": ["_t.>", "$JS.ACK.>", "$JS.FC.>", *_SYSTEM, *work, *admin]},
        "subscribe": {"deny": ["_t.>", "$JS.>", f"{PRIVATE_INBOX}.>", *_SYSTEM]},
    }


def granted(user: User, layout: Layout, live: Sequence[str] = ()) -> dict[str, Any]:
    """What a user of one namespace has to be allowed on an external server, in the server's words, and nothing else.

    `live`: the subjects of the application's channels and requests.
    """
    heard, asked_all = [*layout.roots, *live], [f"_g.{subject}" for subject in live]
    askers = ["_r.*"] if live else []  # where one asker takes streams and what everybody answers
    publish = [*heard, *asked_all, *askers, layout.who(">"), *_requests(_of("publish", layout))]
    subscribe = [*heard, *askers, "_INBOX.>", layout.failed]
    if user != "publish":
        ours = [f"_t.{layout.namespace}.>", f"_s.{layout.namespace}.>"]
        acks = [f"$JS.ACK.{stream}.>" for stream in (layout.events, layout.control)]
        publish += [*ours, *acks, "_INBOX.>", layout.failed, *_requests(_of("work", layout))]
        subscribe += [layout.who(">"), f"_s.{layout.namespace}.>", *asked_all, *(["$SRV.>"] if live else [])]
    if user == "admin":
        publish += _requests(_of("admin", layout))
    return {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}}


def configuration(layout: Layout, users: Sequence[User] = USERS, live: Sequence[str] = ()) -> str:
    """The users of a namespace as lines for nats-server's configuration, inside an account with JetStream."""
    channels = ", ".join(live) or "none: name them with --live 'orders.>'"
    lines = [
        f"# Users of the namespace {layout.namespace!r}. Put this into an account with `jetstream: enabled`.",
        f"# Events: {', '.join(layout.roots)}. Channels and requests: {channels}.",
        "# Each password is taken from the server's environment; or write it here in quotes.",
        "users: [",
    ]
    for user in users:
        variable = f"{layout.namespace}_{user}_password".replace("-", "_").upper()
        lines += [
            "  {",
            f"    user: {json.dumps(f'{layout.namespace}-{user}')}",
            f"    password: ${variable}",
            "    permissions: {",
        ]
        for act, rule in granted(user, layout, live).items():
            allowed = "\n".join(f"        {json.dumps(subject)}" for subject in rule["allow"])
            lines += [f"      {act}: {{ allow: [", allowed, "      ] }"]
        lines += ["    }", "  }"]
    return "\n".join([*lines, "]"])


def _of(user: User, layout: Layout) -> list[str]:
    """The requests of a user about the namespace's two streams."""
    found = []
    for verb in _API[user]:
        streams = (layout.events, layout.control) if "*" in verb else ("",)
        found += [verb.replace("*", stream) for stream in streams]
    return found


def _families(user: User) -> tuple[str, ...]:
    """The requests of a user about any stream, also in a form that another version of the server may know."""
    return tuple(dict.fromkeys(f"{verb.partition('.*')[0]}.>" for verb in _API[user]))


def _requests(verbs: Sequence[str]) -> list[str]:
    return [f"$JS.API.{verb}" for verb in verbs]
