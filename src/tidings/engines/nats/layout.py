"""The names and shapes of a namespace's two streams and of its groups' consumers.

*Events* holds what was published on the namespace's roots, and nothing a publisher sends can erase or limit it.
*Control* holds everything of ours, one subject per thing, so that each change can be conditioned on the state it was
based on:

    _t.{ns}.in.{group}.{position}    inbox: entries given to one group again (redrive, a claim added later)
    _t.{ns}.dead.{group}.{position}  dead letters
    _t.{ns}.park.{group}.{position}  set aside behind an earlier message of its key (ordered groups)
    _t.{ns}.att.{group}.{position}   attempts made on a message that is being retried
    _t.{ns}.ref.{group}.{position}   beside a dead letter or inbox message that is too large to carry the entry's body
    _t.{ns}.at.{id}                  messages that wait for their time
    _t.{ns}.due.{subject}            those whose time has come, on their way into Events
    _t.{ns}.reg.{key}                small shared state
    _t.{ns}.meta.lock|gone.{group}   the lock for changing shapes; groups that were removed
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from ...engine import Claim
from ...errors import ConfigError
from ...subjects import check_filter, normalise, token

API_LEVEL: Final = 4
"""JetStream's, of nats-server 2.14: the first with all that is used here."""
NS: Final = 1_000_000_000
FOREVER: Final = "2200-01-01T00:00:00Z"
_METADATA: Final = "tidings"
_DEDUPE_WINDOW: Final = 300 * NS


class Layout(msgspec.Struct, frozen=True):
    namespace: str
    roots: tuple[str, ...]

    def __post_init__(self) -> None:
        if token(self.namespace) != self.namespace or len(self.namespace) > 32:
            raise ConfigError(f"namespace {self.namespace!r}: 1 to 32 letters, digits, '-' and '_'")
        if not self.roots:
            raise ConfigError("roots= is empty: name at least one root, for example 'events.>'")
        for root in self.roots:
            check_filter(root)
            if root.split(".")[0] in ("*", ">", "_t", "_tw", "_INBOX"):
                raise ConfigError(f"roots={root!r}: a root begins with a name of its own, as in 'events.>'")

    @property
    def events(self) -> str:
        return f"{self.namespace}-events"

    @property
    def control(self) -> str:
        return f"{self.namespace}-control"

    def inbox(self, group: str, position: int | str = ">") -> str:
        return f"_t.{self.namespace}.in.{group}.{position}"

    def dead(self, group: str, position: int | str = ">") -> str:
        return f"_t.{self.namespace}.dead.{group}.{position}"

    def parked(self, group: str, position: int | str = ">") -> str:
        return f"_t.{self.namespace}.park.{group}.{position}"

    def attempts(self, group: str, position: int | str = ">") -> str:
        return f"_t.{self.namespace}.att.{group}.{position}"

    def reference(self, group: str, position: int | str = ">") -> str:
        return f"_t.{self.namespace}.ref.{group}.{position}"

    def schedule(self, subject: str, id: str) -> str:
        return f"_t.{self.namespace}.at.{hashlib.sha256(f'{subject} {id}'.encode()).hexdigest()[:32]}"

    @property
    def every_schedule(self) -> str:
        return f"_t.{self.namespace}.at.>"

    def due(self, subject: str) -> str:
        return f"_t.{self.namespace}.due.{subject}"

    def record(self, key: str) -> str:
        return f"_t.{self.namespace}.reg.{token(key)}"

    @property
    def lock(self) -> str:
        return f"_t.{self.namespace}.meta.lock"

    def gone(self, group: str) -> str:
        return f"_t.{self.namespace}.meta.gone.{group}"

    @property
    def failed(self) -> str:
        """Outside of the streams: workers tell here what has failed (`tidings.failures`)."""
        return f"_tw.{self.namespace}.failed"

    def who(self, group: str) -> str:
        """Outside of the streams: readers answer here what they hold."""
        return f"_tw.{self.namespace}.who.{group}"

    def events_config(self, replicas: int) -> dict[str, Any]:
        return {
            "name": self.events,
            "subjects": normalise(list(self.roots)),
            "retention": "limits",
            "discard": "new",
            "storage": "file",
            "num_replicas": replicas,
            "duplicate_window": _DEDUPE_WINDOW,
            "allow_atomic": True,
            "allow_direct": True,
            "sources": [
                {
                    "name": self.control,
                    "subject_transforms": [{"src": f"_t.{self.namespace}.due.>", "dest": ">"}],
                }
            ],
        }

    def control_config(self, replicas: int) -> dict[str, Any]:
        return {
            "name": self.control,
            "subjects": [f"_t.{self.namespace}.>"],
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "num_replicas": replicas,
            "duplicate_window": _DEDUPE_WINDOW,
            "allow_atomic": True,
            "allow_direct": True,
            "allow_msg_schedules": True,
            "allow_msg_ttl": True,
            "allow_rollup_hdrs": True,
        }

    def group_config(self, shape: Shape) -> dict[str, Any]:
        """The consumer on Events."""
        return _consumer(shape.name, shape.lease) | {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": shape.start,
            "filter_subjects": normalise([held.claim.filter for held in shape.claims]),
            "metadata": {_METADATA: msgspec.json.encode(shape).decode()},
        }

    def inbox_config(self, shape: Shape) -> dict[str, Any]:
        """The consumer on Control, mostly idle."""
        return _consumer(shape.name, shape.lease) | {
            "deliver_policy": "all",
            "filter_subjects": [self.inbox(shape.name)],
        }


def _consumer(name: str, lease: float) -> dict[str, Any]:
    return {
        "name": name,
        "durable_name": name,
        "ack_policy": "explicit",
        "ack_wait": int(lease * NS),
        "max_deliver": -1,
        "max_ack_pending": 100_000,
    }


class Held(msgspec.Struct, frozen=True):
    """A claim as a group's consumer carries it out."""

    claim: Claim
    direct: int | None
    """First position that the consumer on Events hands out for it; those before come through the inbox.
    None for a moment when a claim is added."""
    copied: bool = True
    """Whether those before are in the inbox."""


class Shape(msgspec.Struct, frozen=True):
    """What a group's consumer knows of its group, kept in the consumer's metadata."""

    name: str
    claims: tuple[Held, ...]
    lease: float
    start: int
    """Where the consumer began; it cannot be changed."""
    ordered: bool = False

    @property
    def pending(self) -> bool:
        return not all(held.copied for held in self.claims)

    def wants(self, subject: str, position: int) -> bool:
        return any(held.claim.wants(subject, position) for held in self.claims)

    def verdict(self, subject: str, position: int) -> bool | None:
        """Whether a delivery from Events is to be handed out; None when that is not known yet."""
        verdict: bool | None = False
        for held in self.claims:
            if held.claim.wants(subject, position):
                if held.direct is None:
                    verdict = None
                elif position >= held.direct:
                    return True
        return verdict


def shape_of(info: dict[str, Any]) -> Shape | None:
    """The group that a consumer stands for, or None for a foreign one."""
    text = (info["config"].get("metadata") or {}).get(_METADATA)
    return msgspec.json.decode(text, type=Shape) if text else None
