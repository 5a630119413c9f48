"""`./test`: what its words select, what its last line says, and how tests are left out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import checks
import needs

ROOT = Path(__file__).resolve().parents[2]
NOT_THERE = "/dev/null/chromium"
PYTEST = [sys.executable, "-m", "pytest", *checks.SIDE_BY_SIDE]


def test_no_word_selects_everything() -> None:
    """`./test` alone runs lint, types and every test."""
    selection = checks.parse([])
    assert selection.everything
    assert list(selection.checks()) == ["ruff check", "ruff format", "mypy", "pytest"]


def test_an_area_selects_its_folder_only() -> None:
    """`./test unit` runs the tests of that folder and no lint."""
    assert checks.parse(["unit"]).checks() == {"pytest": [*PYTEST, str(ROOT / "tests" / "unit")]}


def test_lint_selects_no_test() -> None:
    """`./test lint` runs linters and types, not pytest; with an area beside it, that too."""
    assert list(checks.parse(["lint"]).checks()) == ["ruff check", "ruff format", "mypy"]
    assert list(checks.parse(["lint", "unit"]).checks())[-1] == "pytest"


def test_words_after_two_dashes_go_to_pytest() -> None:
    """`./test -- -k push -x` narrows the tests by pytest's own options and leaves lint alone."""
    selection = checks.parse(["--", "-k", "push", "-x"])
    assert selection.checks() == {"pytest": [*PYTEST, "-k", "push", "-x"]}
    assert not selection.everything


def test_a_file_can_be_named_down_to_one_test() -> None:
    """A path of a test, with `::` too, is taken as it is."""
    one = "tests/unit/test_checks.py::test_lint_selects_no_test"
    assert checks.parse([one]).tests == (one,)


def test_an_unknown_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A word that selects nothing ends with status 2 and names what there is, instead of passing with no test run."""
    with pytest.raises(SystemExit) as ended:
        checks.parse(["sytem"])
    assert ended.value.code == checks.USAGE
    said = capsys.readouterr().err
    assert "there is no 'sytem'" in said
    assert "conformance, system, unit" in said


def test_the_last_line_names_failures_first() -> None:
    """One line: what failed, what passed, what was left out, how long it took."""
    line = checks.summary({"mypy": True, "pytest": False}, ["browser tests (no chromium)"], 12.3)
    assert line == "./test: failed: pytest; passed: mypy; left out: browser tests (no chromium) (12 s)"


def test_one_failed_check_fails_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check is run to its end, and one that fails makes the status 1."""
    monkeypatch.setitem(os.environ, "PATH", os.environ["PATH"])
    monkeypatch.setattr(checks, "LINT", {"bad": ["no_such_module"], "good": ["this"]})
    assert checks.main(["lint"]) == 1
    assert "./test: failed: bad; passed: good" in capsys.readouterr().err


def test_ci_refuses_to_leave_anything_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With CI=true a full run without chromium fails before it begins, and says how to get it."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("TIDINGS_CHROMIUM", NOT_THERE)
    assert checks.main([]) == 1
    assert "apt-get install chromium" in capsys.readouterr().err


@pytest.mark.parametrize("name", needs.CHROMIUM_NAMES)
def test_chromium_is_found_by_its_usual_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian, Ubuntu and the vendor call it differently; each name is found on PATH."""
    (tmp_path / name).symlink_to(sys.executable)
    monkeypatch.delenv("TIDINGS_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs.chromium() == str(tmp_path / name)


def run_browser_test(folder: Path, chromium: str, ci: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with this project's settings on one plain test and one marked `browser`, which fails when run."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_two.py").write_text(
        "import pytest\n\ndef test_plain(): pass\n\n"
        "@pytest.mark.browser\ndef test_browser(chromium): raise AssertionError(chromium)\n"
    )
    settings = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *settings, str(folder)],
        env={**os.environ, "TIDINGS_CHROMIUM": chromium, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )


def test_browser_tests_run_where_there_is_a_browser(tmp_path: Path) -> None:
    """With a chromium the marked test runs and gets its path."""
    run = run_browser_test(tmp_path, chromium=sys.executable, ci="")
    assert "1 failed, 1 passed" in run.stdout
    assert f"AssertionError: {sys.executable}" in run.stdout


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_browser_tests_are_left_out_with_a_word(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Without one the marked test is deselected, also by several processes, and the last line says how many, why, and
    what to install."""
    run = run_browser_test(tmp_path, NOT_THERE, "", *options)
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("left out: 1 browser test (no chromium): apt-get install chromium")


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_browser_tests_are_not_left_out_in_ci(tmp_path: Path, options: tuple[str, ...]) -> None:
    """With CI=true the same is an error, so that no pipeline is green without having looked."""
    run = run_browser_test(tmp_path, NOT_THERE, "true", *options)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "CI=true allows nothing to be left out" in run.stderr + run.stdout
    assert "passed" not in run.stdout


def test_who_may_not_mount_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that need a small disk of their own are left out for a user who may not mount, with what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert needs.may_mount.__wrapped__() is None
    [need] = [need for need in needs.NEEDS if need.marker == "mount"]
    assert need.notice(3).startswith("left out: 3 mount tests (no right to mount): run as root")


def test_the_soak_is_no_area() -> None:
    """`./test soak` has its own words and its own exit status; what lies in its folder is no test."""
    assert "soak" not in checks.areas()
    assert checks.main(["soak", "--minutes", "0"]) == checks.USAGE
