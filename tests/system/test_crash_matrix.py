"""A process killed at every failpoint: each message changes the database once, each follow-up leaves once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crash.matrix import CELLS, Cell, Found
from crash.run import run
from tidings.failpoints import FAILPOINTS

if TYPE_CHECKING:
    from databases import Server

pytest_plugins = ("databases",)


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: sockets have little room for theirs."""
    with tempfile.TemporaryDirectory(prefix="tidings-crash-") as name:
        yield Path(name)


def told(found: list[Found]) -> list[str]:
    return [f"{one.cell.label}: {what}" for one in found for what in (*one.doubled, *one.missing, *one.other)]


def test_every_failpoint_is_in_the_matrix() -> None:
    """On both databases."""
    for database in ("sqlite", "postgresql"):
        assert {cell.failpoint for cell in CELLS if cell.database == database} == set(FAILPOINTS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", list(dict.fromkeys(cell.kind for cell in CELLS)))
async def test_a_kill_at_every_failpoint_changes_nothing(kind: str, folder: Path, postgresql_server: Server) -> None:
    """One kill in each cell; then every operation has one row and one event, and nothing else is there."""
    cells = [cell for cell in CELLS if cell.kind == kind]
    found = await run(cells, 1, folder, postgresql_server, seed=1, lanes=3)
    assert told(found) == []
    assert [one.kills for one in found] == [1] * len(cells)


@pytest.mark.timeout(600)
async def test_a_kill_at_every_failpoint_changes_nothing_on_valkey(folder: Path, postgresql_server: Server) -> None:
    """One kill at each failpoint, in a handler or a route."""
    first = {cell.failpoint: cell for cell in reversed(CELLS) if cell.database == "sqlite"}
    cells = [first[failpoint] for failpoint in FAILPOINTS]
    found = await run(cells, 1, folder, postgresql_server, seed=1, lanes=3, engine="valkey")
    assert told(found) == []
    assert [one.kills for one in found] == [1] * len(cells)


@pytest.mark.parametrize(
    ("defect", "failpoint", "part"),
    [
        ("no_inbox", "commit.ended", "doubled"),
        ("inbox_apart", "commit.begun", "missing"),
        ("staged_nowhere", "commit.ended", "missing"),
    ],
)
async def test_a_planted_defect_is_found(
    defect: str, failpoint: str, part: str, folder: Path, postgresql_server: Server
) -> None:
    """The matrix can fail: without an inbox, with its mark committed apart, without an outbox it says so."""
    [found] = await run([Cell("handler", failpoint, "sqlite")], 1, folder, postgresql_server, seed=1, defect=defect)
    assert getattr(found, part), told([found])
