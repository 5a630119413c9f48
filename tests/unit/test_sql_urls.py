"""Database URLs: what people write becomes usable, and nothing that is printed holds a password."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from tidings.errors import ConfigError
from tidings.sql import database_url, masked


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("sqlite:///todo.db", "sqlite+aiosqlite:///todo.db"),
        ("sqlite:////var/todo.db", "sqlite+aiosqlite:////var/todo.db"),
        ("sqlite+aiosqlite:///todo.db", "sqlite+aiosqlite:///todo.db"),
        ("postgres://u:p@h:5432/d", "postgresql+asyncpg://u:p@h:5432/d"),
        ("postgresql://h/d", "postgresql+asyncpg://h/d"),
        ("POSTGRESQL://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql://h/d?sslmode=require&x=1", "postgresql+asyncpg://h/d?ssl=require&x=1"),
        ("postgresql+psycopg://h/d?sslmode=require", "postgresql+psycopg://h/d?sslmode=require"),
        (" sqlite:///todo.db\n", "sqlite+aiosqlite:///todo.db"),
    ],
)
def test_a_plain_url_gets_its_async_driver(given: str, made: str) -> None:
    """A URL without a driver gets the async one; a driver that is named stays."""
    assert database_url(given) == made
    assert make_url(made).get_backend_name() in ("sqlite", "postgresql")


@pytest.mark.parametrize("given", ["todo.db", "", "mysql://u:hidden@h/d", "user:hidden@host/d"])
def test_what_cannot_work_is_refused_in_words(given: str) -> None:
    """Other databases and texts that are no URL raise, and the error shows no password."""
    with pytest.raises(ConfigError) as caught:
        database_url(given)
    assert "mysql" not in given or "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hidden@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hid@den@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hid/den@h/d", "postgresql://u:***@h/d"),
        ("postgresql://:hidden@h/d", "postgresql://:***@h/d"),
        ("postgresql://h/d?user=u&password=hidden&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("sqlite:///todo.db", "sqlite:///todo.db"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    """A password is not shown, whether it stands in the user part, unescaped, or as a parameter."""
    assert masked(url) == shown


def test_an_engine_url_is_masked() -> None:
    """SQLAlchemy's own URL objects are masked too."""
    assert masked(make_url("postgresql+asyncpg://u:hidden@h/d?password=also")) == (
        "postgresql+asyncpg://u:***@h/d?password=***"
    )
