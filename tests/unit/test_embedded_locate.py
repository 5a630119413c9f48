"""Where the broker lives, and what is said when it cannot live there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tidings.embedded.locate import Layout, project_directory
from tidings.errors import BrokerError


@pytest.mark.parametrize("marker", ["pyproject.toml", ".git"])
def test_the_project_root_is_the_nearest_marker_upwards(tmp_path: Path, marker: str) -> None:
    """A folder deep inside a project shares the broker at its root."""
    inner = tmp_path / "src" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / marker).touch()
    assert project_directory(inner) == tmp_path / ".tidings"


def test_the_nearest_of_two_projects_wins(tmp_path: Path) -> None:
    """A project inside a repository has its own broker."""
    inner = tmp_path / "one"
    inner.mkdir()
    (tmp_path / ".git").mkdir()
    (inner / "pyproject.toml").touch()
    assert project_directory(inner) == inner / ".tidings"


def test_without_a_project_the_folder_itself_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """No marker up to the root of the file system: the broker lives where one stands."""
    monkeypatch.chdir("/")
    assert project_directory() == Path("/.tidings")


def test_folders_are_made_for_this_user_and_kept_out_of_git(tmp_path: Path) -> None:
    """Preparing twice gives 0700 folders whatever the umask and whatever was there, and an ignore file."""
    root = tmp_path / "deep" / ".tidings"
    root.mkdir(parents=True, mode=0o755)
    layout = Layout.of(root)
    before = os.umask(0)
    try:
        layout.prepare()
        layout.prepare()
    finally:
        os.umask(before)
    assert (root / ".gitignore").read_text() == "*\n"
    for folder in (root, layout.run, layout.data, root / "locks", root / "log"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_path_through_a_file_is_refused_in_words(tmp_path: Path) -> None:
    """The error names the directory, the reason, and the way out."""
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match=r"a part of the path is a file.*embedded:\./dir") as caught:
        Layout.of(tmp_path / "file" / "x").prepare()
    assert str(tmp_path) in str(caught.value)


def test_a_full_disk_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with next to nothing left is no place to start a broker."""
    layout = Layout.of(tmp_path)
    layout.check_space()
    usage = shutil.disk_usage(tmp_path)._replace(free=1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BrokerError, match="is full"):
        layout.check_space()
