"""What docs/database.md shows for Alembic works as it stands, on both databases."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, inspect

from tidings.errors import ConfigError
from tidings.sql import Migrations, Tables, upgrade

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)

PAGE = Path(__file__).parents[2] / "docs" / "database.md"
MODELS = """
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    pass
"""


def test_the_example_upgrades_and_autogenerate_leaves_the_tables_alone(database: Place, tmp_path: Path) -> None:
    """Its files are written and its commands run in an empty project: afterwards nothing is pending."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", page, re.DOTALL):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    settings = f"[alembic]\nscript_location = migrations\nprepend_sys_path = .\nsqlalchemy.url = {database.sync_url}\n"
    (tmp_path / "alembic.ini").write_text(settings, encoding="utf-8")
    [shown] = re.findall(r"<!-- run -->\n```console\n(.*?)```", page, re.DOTALL)
    typed = re.findall(r"^\$ (.*)$", shown, re.MULTILINE)
    assert typed
    printed = "".join(run(command, tmp_path) for command in typed)
    assert printed.strip() == re.sub(r"^\$ .*\n", "", shown, flags=re.MULTILINE).strip()
    run(f"tidings db status --database-url {database.sync_url.replace('+psycopg', '')}", tmp_path)


def run(command: str, folder: Path) -> str:
    """What the command says on stdout; it must end with 0."""
    words = [sys.executable, "-m", *shlex.split(command)]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, f"$ {command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def test_upgrading_step_by_step_in_a_transaction_of_ones_own(database: Place) -> None:
    """`to=` stops at a number, a rollback takes all of it back, repeating does nothing."""
    engine = create_engine(database.sync_url)
    tables = Tables("own_")
    with engine.connect() as connection:
        if database.kind == "sqlite":  # its driver begins no transaction for DDL by itself
            connection.exec_driver_sql("BEGIN")
        names = upgrade(connection, tables=tables)
        assert names[:2] == ["0001_inbox_outbox", "0002_outbox_order"]
        connection.rollback()
    assert inspect(engine).get_table_names() == []
    for number, name in enumerate(names, 1):
        with engine.begin() as connection:
            assert upgrade(connection, tables=tables, to=number) == [name]
    with engine.begin() as connection:
        assert upgrade(connection, tables=tables) == []
        with pytest.raises(ConfigError, match="to=99"):
            upgrade(connection, tables=tables, to=99)
    engine.dispose()


async def test_the_status_after_a_step_names_the_rest(database: Place) -> None:
    """After number 1 the others are pending."""
    engine = create_engine(database.sync_url)
    with engine.begin() as connection:
        upgrade(connection, to=1)
    engine.dispose()
    status = await Migrations(database.url).status()
    assert status.applied == ("0001_inbox_outbox",)
    assert status.pending[0] == "0002_outbox_order"
