"""Database URLs as people write them: made usable for SQLAlchemy's async engines, and made printable."""

from __future__ import annotations

import re
from typing import Final

from tidings.errors import ConfigError

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Up to the last '@' before the path: people forget to escape an '@' in a password.
_USERINFO = re.compile(r"(://[^/?#:]*:)(.*)(@)")
_SECRET = re.compile(r"([?&](?:password|passwd|pwd|sslpassword|token|secret)=)[^&#]*", re.IGNORECASE)
_SSLMODE = re.compile(r"([?&])sslmode=")


def database_url(text: str) -> str:
    """A URL for `create_async_engine`: `sqlite:///todo.db`, `postgres://…` and `postgresql://…` get their async driver.

    A URL that names a driver keeps it. `sslmode=`, which asyncpg does not know, becomes `ssl=`. Raises `ConfigError`
    for other databases and for what is no URL.
    """
    text = text.strip()
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise ConfigError(
            f"{masked(text)!r} is not a database URL: write sqlite:///todo.db or postgresql://user:password@host/name"
        )
    name, _, driver = scheme[1].lower().partition("+")
    if name not in _DRIVERS:
        raise ConfigError(f"{masked(text)!r}: Tidings keeps its tables in SQLite or PostgreSQL, not in {name!r}")
    full = f"{'postgresql' if name == 'postgres' else name}+{driver}" if driver else _DRIVERS[name]
    url = f"{full}://{text[scheme.end() :]}"
    return _SSLMODE.sub(r"\1ssl=", url) if full.endswith("+asyncpg") else url


def masked(url: object) -> str:
    """The URL for people and logs: `***` where a password stands, in the user part or as a parameter."""
    return _SECRET.sub(r"\1***", _USERINFO.sub(r"\1***\3", _text(url)))


def _text(url: object) -> str:
    render = getattr(url, "render_as_string", None)
    return str(render(hide_password=True) if render else url)
