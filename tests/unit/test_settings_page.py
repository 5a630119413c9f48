"""docs/settings.md says what there is: each setting with its default, each command with its line."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tidings.cli.root import COMMANDS
from tidings.settings import Settings, load

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?P<name>[a-z_]+)` \| (?P<default>[^|]*) \| .+ \|$", re.MULTILINE)
COMMAND = re.compile(r"^\| `tidings (?P<name>[a-z]+)` \| (?P<line>.+) \|$", re.MULTILINE)


def test_every_setting_is_on_the_page_and_no_other() -> None:
    """The table has the fields of `Settings`, in their order."""
    assert [row["name"] for row in ROW.finditer(PAGE)] == [field.name for field in fields(Settings)]


@pytest.mark.parametrize("row", list(ROW.finditer(PAGE)), ids=lambda row: str(row["name"]))
def test_the_defaults_are_those_that_hold(row: re.Match[str], tmp_path: Path) -> None:
    """What the table shows as the default, written into the environment, changes nothing; without one there is none."""
    name, shown = row["name"], row["default"].strip()
    if shown.startswith("`"):
        assert load(tmp_path, {f"TIDINGS_{name.upper()}": shown.strip("`")}) == Settings()
    else:
        assert getattr(Settings(), name) in (None, "")


def test_every_command_is_on_the_page_with_its_line() -> None:
    """The table of commands says what `tidings --help` says."""
    shown = {row["name"]: row["line"] for row in COMMAND.finditer(PAGE)}
    assert shown == {name: line for name, (_, line) in COMMANDS.items() if line}
