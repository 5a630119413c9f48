"""The table of the conformance cases counts what really happened."""

from __future__ import annotations

import pytest

from conformance.report import PROPERTY, Tally


def report(engine: str, layer: str, name: str, *outcomes: str) -> list[pytest.TestReport]:
    return [
        pytest.TestReport(
            f"{engine}-{name}",
            ("", 0, ""),
            {},
            outcome,  # type: ignore[arg-type]
            None,
            "call",
            user_properties=[(PROPERTY, (engine, layer, name))],
        )
        for outcome in outcomes
    ]


def lines(*reports: list[pytest.TestReport]) -> list[str]:
    tally = Tally()
    for each in reports:
        for one in each:
            tally.note(one)
    return list(tally.lines())


def test_nothing_is_said_when_no_case_ran() -> None:
    """A run without conformance cases has no table."""
    assert lines() == []


def test_each_case_counts_once_on_each_engine() -> None:
    """The three reports of a test are one case; cases and engines are counted apart; what an engine lacks is shown."""
    told = lines(
        report("memory", "seam", "a", "passed", "passed", "passed"),
        report("memory", "bus", "b", "passed", "passed", "passed"),
        report("nats", "seam", "a", "passed", "passed", "passed"),
        report("nats", "bus", "b", "passed", "passed", "passed"),
        report("nats", "seam", "c", "passed", "passed", "passed"),
    )
    assert [line.split() for line in told[1:3]] == [["memory", "1", "1", "0", "0", "1"], ["nats", "2", "1", "0", "0"]]
    assert told[-1] == "conformance: 3 cases x 2 engines, 0 skipped"


def test_the_worst_outcome_counts() -> None:
    """A case whose teardown fails has failed, one that was skipped is no pass, and both are in the last line."""
    told = lines(
        report("nats", "seam", "a", "passed", "passed", "failed"),
        report("nats", "seam", "b", "skipped", "passed"),
        report("nats", "bus", "c", "passed", "failed", "passed"),
    )
    assert told[1].split() == ["nats", "0", "0", "2", "1"]
    assert told[-1] == "conformance: 3 cases x 1 engines, 1 skipped, 2 failed"
