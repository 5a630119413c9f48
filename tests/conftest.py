"""What every test has: the browser it may ask for, and an honest word about what was left out and what the engines were
held to.

The tests run in several processes (`./test`); what they found out is said by the one that started those.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

import needs
from conformance.report import Tally

# Before a test module imports one of them: they are plugins too.
pytest.register_assert_rewrite("brokers", "databases", "on_nats", "workbench", "nats_server", "redis_server")

# Beside the other caches: what it writes down holds paths of this machine.
set_hypothesis_home_dir(Path(__file__).parents[1] / ".cache" / "hypothesis")

LEFT_OUT = pytest.StashKey[list[str]]()
_tally = Tally()


@pytest.fixture(autouse=True)
def what_is_logged() -> Iterator[None]:
    """A command that sets up logging, as the command line does, sets it up for its own test only."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


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
    refused = notices and needs.nothing_may_be_left_out()
    if refused:
        notices.insert(0, "CI=true allows nothing to be left out")
    if hasattr(config, "workeroutput"):  # one of several processes, and not the one that says what came of it
        config.workeroutput["left_out"] = notices
        if refused:
            items.clear()
    elif refused:
        raise pytest.UsageError(*notices)
    else:
        config.stash[LEFT_OUT] = notices


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of several processes is done: all of them have left out the same."""
    if output := getattr(node, "workeroutput", None):
        node.config.stash[LEFT_OUT] = output["left_out"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash.get(LEFT_OUT, []) and needs.nothing_may_be_left_out():
        session.exitstatus = pytest.ExitCode.USAGE_ERROR


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Reports go from one process to another in UTF-8, also those of a test that logs half a character."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {name: _encodable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_encodable, value))
    return value


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _tally.note(report)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Below pytest's own last line: the table of the engines, and one line per thing left out."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if not terminal:
        return
    for line in _tally.lines():
        terminal.write_line(line)
    for notice in config.stash.get(LEFT_OUT, []):
        terminal.write_line(notice, yellow=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser, for tests marked `browser` (`launch(executable_path=chromium)`)."""
    found = needs.chromium()
    assert found, "mark the test with @pytest.mark.browser: it is then left out where there is no chromium"
    return found
