"""Settings: where they come from, and who wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.errors import ConfigError
from tidings.retry import RetryPolicy
from tidings.settings import Settings, duration, load, project_root


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    """An empty folder and an empty environment give the documented defaults."""
    settings = load(tmp_path, {})
    assert settings == Settings()
    assert (settings.url, settings.lease, settings.timeout, settings.grace) == ("embedded:", 30, 60, 30)
    assert settings.retry == RetryPolicy(attempts=8, first=1, most=300)


def test_argument_beats_environment_beats_file(tmp_path: Path) -> None:
    """Each later source overrides the earlier one, setting by setting."""
    project(tmp_path, '[tool.tidings]\nurl = "memory:file"\nlease = "5s"\ngrace = 7\n')
    environment = {"TIDINGS_URL": "memory:env", "TIDINGS_LEASE": "2m"}
    settings = load(tmp_path, environment, url="memory:argument", namespace=None)
    assert (settings.url, settings.lease, settings.grace) == ("memory:argument", 120, 7)


def test_arguments_are_read_like_the_environment(tmp_path: Path) -> None:
    """A flag's text becomes the same value, and the same mistakes are found."""
    settings = load(tmp_path, {}, lease="500ms", retry="attempts=2", timeout=3)
    assert (settings.lease, settings.retry, settings.timeout) == (0.5, RetryPolicy(attempts=2), 3)
    assert load(tmp_path, {}, retry=RetryPolicy(attempts=5)).retry.attempts == 5
    with pytest.raises(ConfigError, match=r"lease: .*duration"):
        load(tmp_path, {}, lease="soon")
    with pytest.raises(ConfigError, match="no setting 'leese'"):
        load(tmp_path, {}, leese=3)


def test_the_file_is_found_from_a_folder_below(tmp_path: Path) -> None:
    """The nearest folder upwards with a pyproject.toml or a .git is the project."""
    project(tmp_path, '[tool.tidings]\nurl = "memory:"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert load(below, {}).url == "memory:"
    (tmp_path / "a" / ".git").mkdir()
    assert project_root(below) == tmp_path / "a"
    assert load(below, {}).url == "embedded:"


def test_an_empty_variable_counts_as_absent(tmp_path: Path) -> None:
    """`TIDINGS_URL=` in an env file changes nothing."""
    assert load(tmp_path, {"TIDINGS_URL": "", "TIDINGS_RETRY": ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE", "0"),
        ("LEASE", "-5s"),
        ("LEASE", "nan"),
        ("GRACE", "5 minutes"),
        ("RETRY", "often"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_variable_is_named(tmp_path: Path, name: str, value: str) -> None:
    """The error names the variable that holds the mistake."""
    with pytest.raises(ConfigError, match=f"TIDINGS_{name}"):
        load(tmp_path, {f"TIDINGS_{name}": value})


@pytest.mark.parametrize(
    "line", ["lease = nan", "lease = inf", "lease = true", "retry = {attempts = 3}", 'leese = "5s"']
)
def test_a_bad_line_in_the_file_is_named(tmp_path: Path, line: str) -> None:
    """What TOML can say and a duration cannot be is refused, naming the file's entry."""
    project(tmp_path, f"[tool.tidings]\n{line}\n")
    with pytest.raises(ConfigError, match=r"tool\.tidings"):
        load(tmp_path, {})


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """A pyproject.toml that is no TOML says so instead of being ignored."""
    project(tmp_path, "[tool.tidings\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml cannot be read"):
        load(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5),
        ("2m", 120),
        ("1h", 3600),
        ("7d", 604800),
        ("1.5", 1.5),
        (" 3 ", 3),
        (2, 2),
        (0.5, 0.5),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    """Units from milliseconds to days; a bare number is seconds."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 s", "5S", "-1", "1e3", "inf", "٣s", "5s5s", True, float("nan")])
def test_what_is_no_duration(text: Any) -> None:
    """Everything else raises and says how to write one."""
    with pytest.raises(ConfigError, match="write 500ms, 5s"):
        duration(text)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_clear_error(text: str) -> None:
    """No text makes `duration` raise anything but `ConfigError`."""
    try:
        outcome = duration(text) >= 0
    except ConfigError as error:
        outcome = repr(text) in str(error)
    assert outcome
