"""`SqlUnits` itself: what it accepts, refuses, imports and says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from tidings.errors import ConfigError, MissingExtra
from tidings.sql import Migrations, SqlUnits, Tables, units_for


class OwnAsync(AsyncSession):
    """A session class of an application."""


class OwnSync(Session):
    """A session class of an application."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"


def test_each_kind_of_sessions_accepts_its_own_annotations(url: str) -> None:
    """Async sessions serve async annotations and sync ones sync annotations; other types are nobody's."""
    units = units_for(create_async_engine(url))
    sync_units = units_for(create_engine(url.replace("+aiosqlite", "")))
    both: list[Any] = [AsyncSession, AsyncConnection, Session, Connection, int, "AsyncSession", None, list[int]]
    assert [units.accepts(a) for a in both] == [True, True, False, False, False, False, False, False]
    assert [sync_units.accepts(a) for a in both] == [False, False, True, True, False, False, False, False]


def test_a_session_class_of_the_application_is_accepted_if_the_sessionmaker_makes_it(url: str) -> None:
    """A handler may name the application's own session class, or the base class."""
    units = SqlUnits(async_sessionmaker(create_async_engine(url), class_=OwnAsync))
    assert units.accepts(OwnAsync)
    assert units.accepts(AsyncSession)
    with pytest.raises(ConfigError, match="class_=OwnAsync"):
        SqlUnits(async_sessionmaker(create_async_engine(url))).accepts(OwnAsync)
    with pytest.raises(ConfigError, match="class_=OwnSync"):
        SqlUnits(sessionmaker(create_engine(url.replace("+aiosqlite", "")))).accepts(OwnSync)


def test_what_makes_no_sessions_is_refused() -> None:
    """A URL or a session instead of a sessionmaker raises and says what to give."""
    for wrong in ("sqlite:///x.db", Session(), object()):
        with pytest.raises(ConfigError, match="async_sessionmaker"):
            SqlUnits(wrong)  # type: ignore[arg-type]


async def test_a_sessionmaker_may_be_bound_later(url: str) -> None:
    """The engine is looked up at first use; without one the error says what to do."""
    sessions = async_sessionmaker()
    units = SqlUnits(sessions)
    with pytest.raises(ConfigError, match="bind it"):
        await units.prepare()
    engine = create_async_engine(url)
    sessions.configure(bind=engine)
    await units.prepare()
    assert units.description == url
    await engine.dispose()


@pytest.mark.parametrize("prefix", ["", "Tidings_", 'x"; drop table y; --', "1st", "a" * 32, "a-b"])
def test_a_prefix_that_would_need_quoting_is_refused(url: str, prefix: str) -> None:
    """The prefix becomes part of SQL, so only plain names are let through."""
    with pytest.raises(ConfigError, match="prefix="):
        SqlUnits(create_async_engine(url), tables=Tables(prefix))


@pytest.mark.parametrize(
    ("memory", "options"),
    [
        ("sqlite+aiosqlite://", {}),
        ("sqlite+aiosqlite:///:memory:", {}),
        ("sqlite+aiosqlite:///file::memory:?cache=shared&uri=true", {}),
        ("sqlite+aiosqlite:///FILE", {"poolclass": StaticPool}),
    ],
)
async def test_a_database_that_cannot_keep_transactions_apart_is_refused(
    tmp_path: Path, memory: str, options: dict[str, Any]
) -> None:
    """SQLite in memory, or with one connection for all sessions, would mix the transactions of two handlers."""
    units = SqlUnits(create_async_engine(memory.replace("FILE", str(tmp_path / "a.db")), **options))
    with pytest.raises(ConfigError, match="use a file"):
        await units.prepare()


def test_import_without_sqlalchemy_says_what_to_install() -> None:
    """Without the extra, `tidings.sql` fails with one sentence, and the seam itself still loads."""
    code = "import sys; sys.modules['sqlalchemy'] = None; import tidings.unit, tidings.sql"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "MissingExtra: SQLAlchemy support is not installed. Run: pip install 'tidings[sql]'" in run.stderr


async def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL whose driver is not installed names the extra that has it, and no password."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingExtra, match=r"tidings\[postgres\]") as caught:
        await Migrations("postgres://u:hidden@127.0.0.1/d").status()
    assert "hidden" not in str(caught.value)


async def test_a_driver_that_nobody_knows_is_refused_in_words() -> None:
    """A URL with a driver that SQLAlchemy does not know raises `ConfigError`, without the password."""
    with pytest.raises(ConfigError, match="no URL for an async engine") as caught:
        await Migrations("postgresql+carrier-pigeon://u:hidden@127.0.0.1/d").status()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_text_for_the_database_administrator_is_complete(dialect: str) -> None:
    """`sql()` has every statement with names filled in, a transaction for each file that records itself."""
    text = Migrations("sqlite:///x.db", tables=Tables("app_")).sql(dialect)
    assert text.count("BEGIN;") == text.count("COMMIT;") == text.count("INSERT INTO app_migrations") == 3
    assert "{" not in text
    assert "INSERT INTO app_migrations (version, name, applied_at) VALUES (1, '0001_inbox_outbox'" in text
