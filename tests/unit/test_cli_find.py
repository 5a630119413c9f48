"""`module:bus` on the command line: what is wrong with a user's module is told with the user's line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tidings.cli.find import load_bus
from tidings.errors import ConfigError

GROUP = """
import tidings
bus = tidings.Bus("app")

@bus.on("events.>", group="not a name")
async def handle(event: dict) -> None: ...
"""
EVENT = """
import tidings

def made():
    class New(tidings.Event, subject="not a subject"):
        item: str

made()
"""
LIBRARY = """
import sqlalchemy
engine = sqlalchemy.create_engine("no address")
"""
OWN = """
def check(number):
    raise ValueError(number)

check(1)
"""


@pytest.mark.parametrize(("text", "line"), [(GROUP, 5), (EVENT, 5), (LIBRARY, 3), (OWN, 3)])
def test_the_line_is_the_users(text: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we, or a library, refuse in a user's module is told with the line of that module."""
    (tmp_path / "users_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_module", raising=False)
    with pytest.raises(ConfigError) as refused:
        load_bus("users_module:bus")
    assert f"{tmp_path / 'users_module.py'}, line {line})" in str(refused.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("st.py:bus", "st:bus?"),
        ("./st.py", "st:bus?"),
        ("./app/st.py:events", "app.st:events?"),
        ("app/st", "app.st:bus?"),
        (".st:bus", "st:bus?"),
        ("../m:bus", "m:bus from the folder ..?"),
        ("/srv/app/m.py:bus", "m:bus from the folder /srv/app?"),
    ],
)
def test_a_path_is_told_as_the_module_it_is(given: str, meant: str) -> None:
    """Who gives a file in place of a module is told what to write."""
    with pytest.raises(ConfigError) as refused:
        load_bus(given)
    assert f"did you mean {meant}" in str(refused.value)
