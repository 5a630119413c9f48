"""What every test has: the browser it may ask for, and an honest word about what was left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

import needs

# Beside the other caches: what it writes down holds paths of this machine.
set_hypothesis_home_dir(Path(__file__).parents[1] / ".cache" / "hypothesis")

LEFT_OUT = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose needs are missing; in continuous integration stop instead.

    Runs after `-k` and `-m` have chosen, so that only tests that would have run are counted.
    """
    notices: list[str] = []
    for need in needs.missing():
        left_out = [item for item in items if item.get_closest_marker(need.marker)]
        if not left_out:
            continue
        notices.append(need.notice(len(left_out)))
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    if notices and needs.nothing_may_be_left_out():
        raise pytest.UsageError("CI=true allows nothing to be left out", *notices)
    config.stash[LEFT_OUT] = notices


def pytest_unconfigure(config: pytest.Config) -> None:
    """Below pytest's own last line: one line per thing left out."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    for notice in config.stash.get(LEFT_OUT, []):
        if terminal:
            terminal.write_line(notice, yellow=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser, for tests marked `browser` (`launch(executable_path=chromium)`)."""
    found = needs.chromium()
    assert found, "mark the test with @pytest.mark.browser: it is then left out where there is no chromium"
    return found
