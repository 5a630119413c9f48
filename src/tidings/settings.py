"""Settings: flag or argument > environment > `[tool.tidings]` in pyproject.toml > default.

Environment names are `TIDINGS_` and the field's name in capitals: `TIDINGS_URL`, `TIDINGS_DATABASE_URL`, …
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, overload

from .errors import ConfigError
from .retry import RetryPolicy
from .subjects import check_filter


@dataclass(frozen=True)
class Settings:
    """What can be set from outside. Durations are seconds; in the environment also `500ms`, `5s`, `2m`, `1h`."""

    url: str = "embedded:"
    """The engine: `embedded:` or `embedded:./dir`, `nats://host1,host2/namespace`, `tls://…`, `memory:`."""
    database_url: str | None = None
    """The user's database, for `tidings db` and the reference application."""
    tables_prefix: str = "tidings_"
    """What the names of the framework's tables in that database begin with."""
    tables_schema: str | None = None
    """The schema that they are in (PostgreSQL); None is the connection's first."""
    namespace: str = ""
    """Name of the system on the engine; the URL's path, else `tidings`."""
    roots: tuple[str, ...] = ("events.>",)
    """The subjects that are durable, for a bus that is not given others; separated by commas in the environment."""
    app: str | None = None
    """`module:bus`, for commands that need the handlers."""
    lease: float = 30.0
    """Seconds after which a message of a dead worker goes to another one; living workers renew at a third of it."""
    retry: RetryPolicy = RetryPolicy()  # noqa: RUF009  (frozen)
    """For handlers that give none: `attempts=8,first=1,most=300`."""
    timeout: float = 60.0
    """Seconds a handler may take."""
    grace: float = 30.0
    """Seconds a stopping worker waits for its running handlers."""
    retention: float | None = 7 * 86400.0
    """Seconds after which an event that every group has handled goes; None, written `never`, keeps it. Under pressure
    of space the oldest handled ones go earlier."""
    retention_unclaimed: float | None = 30 * 86400.0
    """Seconds after which an event goes that no group has ever wanted; None, written `never`, keeps it."""
    retention_inbox: float | None = None
    """Seconds for which the database remembers what was handled; None is twice `retention`, and at least 14 days."""
    version_grace: float = 600.0
    """Seconds that a message of a newer version, or of a type that its handler does not know, waits for a worker that
    knows it; then it is a dead letter `unknown_type`."""
    log_format: str = "text"
    """`text` or `json`."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        least = self._least_inbox
        if self.retention_inbox is not None and (least is None or self.retention_inbox < least):
            needed = "nothing else than never to forget" if least is None else f"at least {least / 86400:g} days"
            raise ConfigError(
                f"retention_inbox is {self.retention_inbox / 86400:g} days: what comes back after that would be "
                f"handled again. It takes {needed} (twice retention and 14 days)"
            )

    @property
    def _least_inbox(self) -> float | None:
        return None if self.retention is None else max(_LEAST_INBOX, 2 * self.retention)

    @property
    def inbox_kept(self) -> float | None:
        """Seconds for which the database remembers what was handled; None is for ever."""
        return self._least_inbox if self.retention_inbox is None else self.retention_inbox


_NAMES = tuple(field.name for field in fields(Settings))
_LEVELS = ("debug", "info", "warning", "error", "critical")
_LEAST_INBOX = 14 * 86400.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str | float) -> float:
    """Seconds of `500ms`, `5s`, `2m`, `1h`, `7d` or a plain number of seconds. Raises `ConfigError`."""
    if isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text):
        return float(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", str(text).strip(), re.ASCII)
    if not match:
        raise ConfigError(f"{text!r} is not a duration: write 500ms, 5s, 2m, 1h, 7d or a number of seconds")
    return float(match[1]) * _UNITS[match[2] or "s"]


@overload
def seconds(given: str | float) -> float: ...


@overload
def seconds(given: str | float | None) -> float | None: ...


def seconds(given: str | float | None) -> float | None:
    """`duration` for arguments in Python: text is parsed, a number stays what it is, and so does None."""
    return duration(given) if isinstance(given, str) else given


def load(start: Path | None = None, environment: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """The settings in force for a process started in `start` (default: here); `given` arguments win, None is absent."""
    environment = os.environ if environment is None else environment
    project = project_root(start or Path.cwd())
    file = project / "pyproject.toml"
    values: dict[str, Any] = {}
    for name, value in _from_file(file).items():
        if name not in _NAMES:
            raise ConfigError(f"{file}: [tool.tidings] has no setting {name!r}")
        values[name] = _convert(name, value, f"[tool.tidings] {name}")
    for name in _NAMES:
        if value := environment.get(f"TIDINGS_{name.upper()}"):
            values[name] = _convert(name, value, f"TIDINGS_{name.upper()}")
    return override(Settings(**values), **given)


def override(settings: Settings, **given: Any) -> Settings:
    """The settings with those `given` in their place; None is absent."""
    values = {}
    for name, value in given.items():
        if name not in _NAMES:
            raise ConfigError(f"there is no setting {name!r}; there are: {', '.join(_NAMES)}")
        if value is not None:
            values[name] = _convert(name, value, name)
    return replace(settings, **values)


def project_root(start: Path) -> Path:
    """The nearest folder upwards with a pyproject.toml or a .git, else `start` itself."""
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return start


def _from_file(file: Path) -> dict[str, Any]:
    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    table = tool.get("tidings", {})
    return table if isinstance(table, dict) else {}


def _convert(name: str, value: Any, where: str) -> Any:
    try:
        if name == "roots":
            parts = value if isinstance(value, list | tuple) else str(value).split(",")
            return tuple(check_filter(str(part).strip()) for part in parts)
        if name == "retry":
            return value if isinstance(value, RetryPolicy) else RetryPolicy.parse(str(value))
        if name.startswith("retention") and str(value).strip().lower() == "never":
            return None
        if name in ("lease", "timeout", "grace", "version_grace") or name.startswith("retention"):
            seconds = duration(value)
            if seconds <= 0:
                raise ConfigError("it must be longer than nothing")
            return seconds
        if name == "log_format" and value not in ("text", "json"):
            raise ConfigError("write text or json")
        if name == "log_level" and str(value).lower() not in _LEVELS:
            raise ConfigError(f"write {', '.join(_LEVELS)}")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return str(value)
